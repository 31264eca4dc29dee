"""Unpack archives from untrusted sources: tar (plain, gz, bz2, xz) and zip.

Only plain files and folders are written, and only inside the target folder: a link, a device, a sparse file, an
absolute path or a path with '..' is an error. An archive that holds more than `Limits` allows is refused before it
fills the disk. After an error nothing of the archive is left.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from tqdm import tqdm

from qdformer.utils.errors import InputError
from qdformer.utils.files import new_folder

_CHUNK = 1 << 20
_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
"""By the first bytes of a compressed file."""
_ENCRYPTED = 0x1
# Raised for a damaged archive, or for one that holds a name both as a file and as a folder
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
    ValueError,
    LookupError,
    NotImplementedError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)


class ArchiveError(InputError):
    """An archive is not readable or not safe; the message names it and the member."""


@dataclass(frozen=True)
class Limits:
    """What an archive may hold. The published data sets have about 400,000 files, 30 GB and a ratio below 10."""

    max_members: int = 2_000_000
    max_bytes: int = 200 << 30
    """Unpacked."""
    max_ratio: float = 100.0
    """Unpacked bytes per packed byte; the first 64 MiB are allowed at any ratio."""

    def bytes_allowed(self, packed: int) -> int:
        """Number of bytes that an archive of `packed` bytes may unpack to."""
        return min(self.max_bytes, int(self.max_ratio * packed) + (64 << 20))


def unpack(archive: Path, target: Path, limits: Limits | None = None, progress: bool = True) -> None:
    """Unpack `archive` into the folder `target`, which is replaced when the archive is complete.

    Raises:
        ArchiveError: the file is no tar or zip, is damaged, is not safe, or exceeds `limits`.
    """
    limits = limits or Limits()
    bar = tqdm(
        total=archive.stat().st_size,
        desc=f"unpack {archive.name}",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    )
    try:
        with new_folder(target) as folder, bar, archive.open("rb") as file:
            unpack_members = _unpack_zip if zipfile.is_zipfile(archive) else _unpack_tar
            unpack_members(archive, file, folder, limits, bar)
    except InputError:
        raise
    except _DAMAGE as error:
        raise ArchiveError(f"{archive}: not a readable tar or zip archive ({error})") from None


class _LimitedReader:
    """Reads from a stream and raises `ArchiveError` after `allowed` bytes."""

    def __init__(self, stream: IO[bytes], allowed: int, archive: Path) -> None:
        self.stream, self.remaining, self.allowed, self.archive = stream, allowed, allowed, archive

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(min(size, self.remaining + 1) if size >= 0 else self.remaining + 1)
        self.remaining -= len(content)
        if self.remaining < 0:
            raise ArchiveError(f"{self.archive}: unpacks to more than {self.allowed:,} bytes; refused as a bomb")
        return content


def _unpack_tar(archive: Path, file: IO[bytes], target: Path, limits: Limits, bar: tqdm) -> None:
    magic = file.read(8)
    file.seek(0)
    stream = file
    for start, opener in _OPENERS.items():
        if magic.startswith(start):
            stream = opener(file)
    # Except for sparse files, which are refused, a tar unpacks to no more than the length of its stream
    limited = cast(IO[bytes], _LimitedReader(stream, limits.bytes_allowed(bar.total), archive))
    names = _NameCheck(archive, limits)
    with tarfile.open(fileobj=limited, mode="r|") as tar:
        for member in tar:
            path = names.check(member.name)
            if member.issparse() or not (member.isreg() or member.isdir()):
                raise ArchiveError(f"{archive}: {member.name!r} is no plain file or folder; refused")
            # Not tar.extract: Python before 3.11.4 (Debian 12) has no filter for plain data
            if member.isdir():
                (target / path).mkdir(parents=True, exist_ok=True)
            else:
                (target / path.parent).mkdir(parents=True, exist_ok=True)
                with cast(IO[bytes], tar.extractfile(member)) as source, open(target / path, "xb") as out:
                    shutil.copyfileobj(source, out, _CHUNK)
            bar.update(file.tell() - bar.n)


def _unpack_zip(archive: Path, file: IO[bytes], target: Path, limits: Limits, bar: tqdm) -> None:
    names = _NameCheck(archive, limits)
    limited = _LimitedReader(file, limits.bytes_allowed(bar.total), archive)  # one limit for all members together
    with zipfile.ZipFile(file) as package:
        for info in package.infolist():
            path = names.check(info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive was not made on Unix
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & _ENCRYPTED:
                raise ArchiveError(f"{archive}: {info.filename!r} is no plain file or folder; refused")
            if info.is_dir():
                (target / path).mkdir(parents=True, exist_ok=True)
                continue
            (target / path.parent).mkdir(parents=True, exist_ok=True)
            with package.open(info) as source, open(target / path, "xb") as out:
                limited.stream = source
                shutil.copyfileobj(cast(IO[bytes], limited), out, _CHUNK)
            bar.update(info.compress_size)


class _NameCheck:
    """Checks the names of an archive's members and counts the members."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.archive, self.limits, self.members = archive, limits, 0

    def check(self, name: str) -> PurePosixPath:
        """The path of a member, relative to the target folder; raises `ArchiveError` if it is not safe."""
        self.members += 1
        if self.members > self.limits.max_members:
            raise ArchiveError(f"{self.archive}: more than {self.limits.max_members:,} members; refused as a bomb")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":":
            raise ArchiveError(f"{self.archive}: {name!r} leads out of the archive; refused")
        return path
