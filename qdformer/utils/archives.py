"""Unpack archives that come from elsewhere: tar (plain, gz, bz2, xz) and zip.

Nothing is written outside the target, and nothing but folders and plain files: a link, a device, a sparse file, an
absolute path or one with '..' ends it. So does an archive that holds more than `Limits` allows, before it fills the
disk. What was unpacked until then is removed.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from qdformer.utils.errors import InputError

_CHUNK = 1 << 20
_OPENERS: dict[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_ENCRYPTED = 0x1
# What the readers raise for one that is damaged, or that holds a name twice in conflicting ways
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, lzma.LZMAError, EOFError),
    *(struct.error, ValueError, LookupError, NotImplementedError),
    *(FileExistsError, NotADirectoryError, IsADirectoryError),
)


class ArchiveError(InputError):
    """An archive is not readable or not safe; the message names it and the member."""


@dataclass(frozen=True)
class Limits:
    """What an archive may hold. The published sets stay far below: about 400,000 files, 30 GB, a ratio under 10."""

    members: int = 2_000_000
    size: int = 200 << 30
    """Bytes unpacked."""
    ratio: float = 100.0
    """Bytes unpacked for each packed one; the first 64 MiB are free."""

    def most(self, packed: int) -> int:
        """Bytes that an archive of `packed` bytes may give."""
        return min(self.size, int(self.ratio * packed) + (64 << 20))


def unpack(archive: Path, target: Path, limits: Limits | None = None, progress: bool = True) -> None:
    """Unpack `archive` into the new folder `target`, which appears when it is complete.

    Raises:
        ArchiveError: it is no tar or zip, damaged, not safe, or beyond `limits`.
    """
    limits = limits or Limits()
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    packed = archive.stat().st_size
    bar = tqdm(
        total=packed,
        desc=f"unpack {archive.name}",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    )
    try:
        with bar, archive.open("rb") as file:
            members = _zip_members if zipfile.is_zipfile(archive) else _tar_members
            members(archive, file, partial, limits, bar)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except InputError:
        raise
    except _DAMAGE as error:
        raise ArchiveError(f"{archive}: not a readable tar or zip archive ({error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Bounded:
    """A stream that refuses to give more than `most` bytes in all, whoever asks for them."""

    def __init__(self, stream: IO[bytes], most: int, archive: Path) -> None:
        self.stream, self.left, self.archive, self.most = stream, most, archive, most

    def read(self, size: int = -1) -> bytes:
        content = self.stream.read(min(size, self.left + 1) if size >= 0 else self.left + 1)
        self.left -= len(content)
        if self.left < 0:
            raise ArchiveError(f"{self.archive}: unpacks to more than {self.most:,} bytes; refused as a bomb")
        return content


def _tar_members(archive: Path, file: IO[bytes], target: Path, limits: Limits, bar: tqdm) -> None:
    magic = file.read(8)
    file.seek(0)
    opener = next((make for start, make in _OPENERS.items() if magic.startswith(start)), None)
    stream = opener(file) if opener else file
    # Sparse files apart, which are refused, a tar unpacks to no more than its stream
    bounded = _Bounded(stream, limits.most(bar.total), archive)
    names = _Names(archive, limits)
    with tarfile.open(fileobj=bounded, mode="r|") as tar:
        for member in tar:
            path = names.check(member.name)
            if member.issparse() or not (member.isreg() or member.isdir()):
                raise ArchiveError(f"{archive}: {member.name!r} is no plain file or folder; refused")
            # written here: Python before 3.11.4, as Debian 12 has it, cannot be told to extract plain data alone
            if member.isdir():
                (target / path).mkdir(parents=True, exist_ok=True)
            else:
                (target / path.parent).mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as source, open(target / path, "xb") as out:
                    shutil.copyfileobj(source, out, _CHUNK)
            bar.update(file.tell() - bar.n)


def _zip_members(archive: Path, file: IO[bytes], target: Path, limits: Limits, bar: tqdm) -> None:
    names, most = _Names(archive, limits), limits.most(bar.total)
    with zipfile.ZipFile(file) as package:
        for info in package.infolist():
            path = names.check(info.filename)
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & _ENCRYPTED:
                raise ArchiveError(f"{archive}: {info.filename!r} is no plain file or folder; refused")
            if info.is_dir():
                (target / path).mkdir(parents=True, exist_ok=True)
                continue
            (target / path.parent).mkdir(parents=True, exist_ok=True)
            with package.open(info) as source, open(target / path, "xb") as out:
                for chunk in _chunks(source):
                    most -= len(chunk)
                    if most < 0:
                        allowed = limits.most(bar.total)
                        raise ArchiveError(f"{archive}: unpacks to more than {allowed:,} bytes; refused as a bomb")
                    out.write(chunk)
            bar.update(info.compress_size)


def _chunks(source: IO[bytes]) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK):
        yield chunk


class _Names:
    """Judges the names of an archive's members, and counts them."""

    def __init__(self, archive: Path, limits: Limits) -> None:
        self.archive, self.limits, self.seen = archive, limits, 0

    def check(self, name: str) -> PurePosixPath:
        """The path below the target that a member's name stands for."""
        self.seen += 1
        if self.seen > self.limits.members:
            raise ArchiveError(f"{self.archive}: more than {self.limits.members:,} members; refused as a bomb")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or name[1:2] == ":":
            raise ArchiveError(f"{self.archive}: {name!r} leads out of the archive; refused")
        return path
