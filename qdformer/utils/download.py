"""Download a file that a user names by its URL; a download that was cut short goes on where it stopped."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from qdformer.utils.digests import file_sha256, short_digest
from qdformer.utils.errors import InputError

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416


class DownloadError(InputError):
    """A file cannot be fetched, or is not the one that was expected; the message names its URL or path."""


def is_url(source: str) -> bool:
    """Whether `source` is to be downloaded; anything else is a path."""
    return source.startswith(("http://", "https://"))


def download(url: str, cache: str | Path, sha256: str = "", progress: bool = True) -> Path:
    """Download `url` into the folder `cache` once, and return the file's path.

    Args:
        url: an http(s) address.
        cache: the folder; the file's name begins with the digest, or without one with a digest of the URL.
        sha256: hex digest that the file must have, or its first digits; '' for any.
        progress: show a bar where the error output is a terminal.

    Raises:
        DownloadError: it cannot be fetched (what came is kept), or has another digest (it is removed).
    """
    name = f"{sha256[:16] or short_digest([url])}-{url.split('?')[0].rsplit('/', 1)[-1]}"
    target = Path(cache) / name
    if target.is_file() and file_sha256(target).startswith(sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, version = target.with_name(f"{name}.partial"), target.with_name(f"{name}.version")
    _download(url, partial, version, progress)
    try:
        check_sha256(partial, sha256, f"{url} (downloaded)")
    except DownloadError:
        partial.unlink()  # complete but wrong: nothing to go on from
        raise
    finally:
        version.unlink(missing_ok=True)
    os.replace(partial, target)
    return target


def check_sha256(path: Path, sha256: str, name: str | None = None) -> str:
    """The digest of a file; `DownloadError` if it does not begin with `sha256`."""
    if not (found := file_sha256(path)).startswith(sha256):
        raise DownloadError(f"{name or path}: SHA-256 is {found}, expected {sha256}")
    return found


def _download(url: str, partial: Path, version: Path, progress: bool) -> None:
    """Append what is missing to `partial`. `version` keeps the server's mark of the file that its bytes are of."""
    have = partial.stat().st_size if partial.is_file() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    if have and version.is_file():
        headers["If-Range"] = version.read_text(encoding="latin-1")  # another version is sent whole
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
            goes_on = response.status == _PARTIAL_CONTENT
            expected = response.headers.get("Content-Length")
            if mark := response.headers.get("ETag") or response.headers.get("Last-Modified"):
                version.write_text(mark, encoding="latin-1")
            start = have if goes_on else 0
            bar = tqdm(
                desc=partial.name.removesuffix(".partial"),
                total=start + int(expected) if expected else None,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=None if progress else True,
            )
            written = 0
            with bar, partial.open("ab" if goes_on else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    written += len(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE and _total(error) in (None, have):
            return  # all of it is here already; the digest will tell
        raise DownloadError(f"{url}: cannot be fetched: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: cannot be fetched: {error}; what came is kept, and a new try goes on") from None
    if expected is not None and written < int(expected):
        raise DownloadError(f"{url}: {written} of {expected} bytes came; they are kept, and a new try goes on")


def _total(error: urllib.error.HTTPError) -> int | None:
    """The size of the file as a refusal of a range tells it (`Content-Range: bytes */123`)."""
    total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
    return int(total) if total.isdecimal() else None
