"""Download a file from a URL; an interrupted download is resumed."""

from __future__ import annotations

import errno
import http.client
import os
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from qdformer.utils.digests import file_sha256, short_digest
from qdformer.utils.errors import InputError, TransientError

_CHUNK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}  # HTTP codes of a server that may answer later
_LOCAL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


class DownloadError(InputError):
    """A file cannot be downloaded or is not the expected one; the message names its URL or path."""


class InterruptedDownloadError(DownloadError, TransientError):
    """The server did not answer or broke off; another try may succeed."""


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) URL; anything else is a path."""
    return source.startswith(("http://", "https://"))


def download(url: str, cache: str | Path, sha256: str = "", progress: bool = True) -> Path:
    """Download `url` into the folder `cache`, unless it is there already, and return the file's path.

    Args:
        url: an http(s) URL.
        cache: the folder. The file's name starts with `sha256`, or with a digest of the URL if `sha256` is empty.
        sha256: hex digest that the file must have, or its first digits; empty for no check.
        progress: show a progress bar if the error output is a terminal.

    Raises:
        DownloadError: the file cannot be downloaded (the bytes received are kept), or has another digest (they are
            removed).
        InterruptedDownloadError: the server did not answer or broke off.
    """
    name = f"{sha256[:16] or short_digest([url])}-{url.split('?')[0].rsplit('/', 1)[-1]}"
    target = Path(cache) / name
    if target.is_file() and file_sha256(target).startswith(sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not utils.files.new_file, which removes the partial file after an error
    partial, version = target.with_name(f"{name}.partial"), target.with_name(f"{name}.version")
    _resume(url, partial, version, progress)
    try:
        check_sha256(partial, sha256, f"{url} (downloaded)")
    except DownloadError:
        partial.unlink()  # complete but wrong, so there is nothing to resume
        raise
    finally:
        version.unlink(missing_ok=True)
    os.replace(partial, target)
    return target


def check_sha256(path: Path, sha256: str, name: str | None = None) -> str:
    """Return the digest of a file; raise `DownloadError` if it does not start with `sha256`."""
    if not (found := file_sha256(path)).startswith(sha256):
        raise DownloadError(f"{name or path}: SHA-256 is {found}, expected {sha256}")
    return found


def _resume(url: str, partial: Path, version: Path, progress: bool) -> None:
    """Append the missing bytes to `partial`. The file `version` holds the ETag or date that its bytes belong to."""
    received = partial.stat().st_size if partial.is_file() else 0
    headers = {"Range": f"bytes={received}-"} if received else {}
    if received and version.is_file():
        headers["If-Range"] = version.read_text(encoding="latin-1")  # if the version differs, the whole file is sent
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT) as response:
            resumed = response.status == _PARTIAL_CONTENT
            expected = response.headers.get("Content-Length")
            if mark := response.headers.get("ETag") or response.headers.get("Last-Modified"):
                version.write_text(mark, encoding="latin-1")
            start = received if resumed else 0
            bar = tqdm(
                desc=partial.name.removesuffix(".partial"),
                total=start + int(expected) if expected else None,
                initial=start,
                unit="B",
                unit_scale=True,
                disable=None if progress else True,
            )
            written = 0
            with bar, partial.open("ab" if resumed else "wb") as file:
                while chunk := response.read(_CHUNK):
                    file.write(chunk)
                    written += len(chunk)
                    bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        if error.code == _RANGE_NOT_SATISFIABLE and _full_size(error) in (None, received):
            return  # the file is complete already; its digest is checked next
        kind = InterruptedDownloadError if error.code in _TRANSIENT else DownloadError
        raise kind(f"{url}: cannot be downloaded: {error}") from None
    except (OSError, http.client.HTTPException) as error:
        kind = InterruptedDownloadError if _is_transient(error) else DownloadError
        raise kind(
            f"{url}: cannot be downloaded: {error}; the bytes received are kept, and another try resumes from them"
        ) from None
    if expected is not None and written < int(expected):
        raise InterruptedDownloadError(
            f"{url}: received {written} of {expected} bytes; they are kept, and another try resumes from them"
        )


def _is_transient(error: Exception) -> bool:
    """Whether another try may succeed: not for a full disk or a certificate that is not accepted."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return not isinstance(reason, ssl.SSLCertVerificationError) and getattr(reason, "errno", None) not in _LOCAL


def _full_size(error: urllib.error.HTTPError) -> int | None:
    """The size of the file according to the refusal of a range (`Content-Range: bytes */123`)."""
    size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
    return int(size) if size.isdecimal() else None
