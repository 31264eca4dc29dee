"""Weights that the user names: a file, or a URL whose download can be interrupted and goes on."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from qdformer.audio.vggish import WeightsError
from qdformer.digests import file_sha256

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416


def fetch_weights(source: str, sha256: str, cache: str | Path) -> Path:
    """The local path of a weights file with the digest `sha256`.

    Args:
        source: a path, or an http(s) URL. A URL is downloaded into the folder `cache` once; a
            download cut short goes on where it stopped.
        sha256: hex digest that the file must have.

    Raises:
        WeightsError: the file is missing, cannot be fetched, or has another digest.
    """
    if not source.startswith(("http://", "https://")):
        path = Path(source).expanduser()
        if not path.is_file():
            raise WeightsError(f"{path}: no such weights file (pretrain.official_source)")
        _check(path, sha256)
        return path
    target = Path(cache) / f"{sha256[:16]}-{source.split('?')[0].rsplit('/', 1)[-1]}"
    if target.is_file() and file_sha256(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    _download(source, partial)
    try:
        _check(partial, sha256, f"{source} (downloaded)")
    except WeightsError:
        partial.unlink()  # complete but wrong: nothing to go on from
        raise
    os.replace(partial, target)
    return target


def _download(url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
            goes_on = response.status == _PARTIAL_CONTENT
            expected = response.headers.get("Content-Length")
            written = 0
            with partial.open("ab" if goes_on else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    written += len(chunk)
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE:
            return  # all of it is here already; the digest will tell
        raise WeightsError(f"{url}: cannot be fetched: {error}") from None
    except OSError as error:
        raise WeightsError(f"{url}: cannot be fetched: {error}; what came is kept, and a new try goes on") from None
    if expected is not None and written < int(expected):
        raise WeightsError(f"{url}: {written} of {expected} bytes came; they are kept, and a new try goes on")


def _check(path: Path, sha256: str, name: str | None = None) -> None:
    if (found := file_sha256(path)) != sha256:
        raise WeightsError(f"{name or path}: SHA-256 is {found}, expected {sha256}")
