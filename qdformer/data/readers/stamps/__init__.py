"""The embedded data set `stamps`: pictures and sounds from Debian packages, composed into scenes."""

from qdformer.data.readers.stamps.compose import compose_stamps
from qdformer.data.readers.stamps.fetch import FetchError

__all__ = ["FetchError", "compose_stamps"]
