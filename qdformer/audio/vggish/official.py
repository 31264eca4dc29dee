"""Weights files given by the user: a local path, or a URL that is downloaded."""

from __future__ import annotations

from pathlib import Path

from qdformer.audio.vggish.model import WeightsError
from qdformer.utils.download import DownloadError, check_sha256, download, is_url


def resolve_weights(source: str, sha256: str, cache: str | Path, setting: str = "pretrain.official_source") -> Path:
    """Return the local path of a weights file with the digest `sha256`.

    Args:
        source: a path, or an http(s) URL.
        sha256: hex digest that the file must have, or its first digits.
        cache: folder of downloaded files; an interrupted download is resumed.
        setting: name of the setting that `source` is from, for messages.

    Raises:
        WeightsError: the file is missing, cannot be downloaded, or has another digest.
    """
    try:
        if is_url(source):
            return download(source, cache, sha256)
        path = Path(source).expanduser()
        if not path.is_file():
            raise WeightsError(f"{path}: no such weights file ({setting})")
        check_sha256(path, sha256)
    except DownloadError as error:
        raise WeightsError(f"{error}; {setting} may also be the path of that file") from None
    return path
