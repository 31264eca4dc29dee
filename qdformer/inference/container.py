"""Opens the media files that a user names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import av

from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from av.container import InputContainer


def open_container(path: Path, kind: str, error: type[InputError]) -> InputContainer:
    """The file, opened by FFmpeg to be read as `kind` (audio, a video).

    Raises `error`, naming the file, if it is missing or FFmpeg cannot read it.
    """
    if not path.is_file():
        raise error(f"{path}: no such file")
    try:
        # Only files: a playlist must not make FFmpeg open addresses in a network.
        return av.open(str(path.resolve()), options={"protocol_whitelist": "file"})
    except (av.FFmpegError, OSError) as reason:
        raise error(f"{path}: cannot be read as {kind}: {reason.strerror or reason}") from None
