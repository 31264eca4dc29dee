"""Unpacking archives: every kind, and the refusal of unsafe, oversized and damaged ones."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zipfile

import pytest

from qdformer.utils.archives import ArchiveError, Limits, unpack

FILES = {"set/a.txt": b"one", "set/inner/b.txt": b"two"}


def write_tar(path, members=(), mode="w"):
    """Write `FILES` and then `members`, given as (name, content) or as a TarInfo."""
    with tarfile.open(path, mode) as tar:
        for item in [*FILES.items(), *members]:
            info, content = (item, b"") if isinstance(item, tarfile.TarInfo) else (tarfile.TarInfo(item[0]), item[1])
            if content:
                info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(path, members=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as package:
        for info, content in [*FILES.items(), *members]:
            package.writestr(info, content)
    return path


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def unix(name, kind):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


@pytest.fixture
def place(tmp_path):
    """A target folder, with a file outside it that must not change."""
    (tmp_path / "inside").mkdir()
    (tmp_path / "precious").write_text("kept")
    yield tmp_path / "inside" / "out"
    assert (tmp_path / "precious").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} <= {"inside", "precious", "archive"}
    assert {path.name for path in (tmp_path / "inside").iterdir()} <= {"out"}, "a partial folder is left"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz", "zip"])
def test_every_format_is_unpacked(tmp_path, place, mode):
    archive = tmp_path / "archive"
    write_zip(archive) if mode == "zip" else write_tar(archive, mode=mode)
    unpack(archive, place, progress=False)
    found = {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}
    assert found == FILES


TARS = {
    "a name with ..": [("set/../../precious", b"gone")],
    "a name that only passes through ..": [("set/../fine", b"x")],
    "an absolute name": [("/tmp/qdformer-evil", b"x")],
    "a link out": [special("set/link", tarfile.SYMTYPE, "../../precious")],
    "a link in": [special("set/link", tarfile.SYMTYPE, "a.txt")],
    "a hard link": [special("set/link", tarfile.LNKTYPE, "set/a.txt")],
    "a device": [special("set/null", tarfile.CHRTYPE)],
    "a pipe": [special("set/pipe", tarfile.FIFOTYPE)],
    "a file through a link": [special("set/up", tarfile.SYMTYPE, ".."), ("set/up/precious", b"gone")],
    "a backslash": [("set\\..\\..\\precious", b"gone")],
}


@pytest.mark.parametrize("members", TARS.values(), ids=TARS.keys())
def test_an_unsafe_tar_is_refused(tmp_path, place, members):
    with pytest.raises(ArchiveError, match="archive: .*refused"):
        unpack(write_tar(tmp_path / "archive", members), place, progress=False)
    assert not place.exists() and not os.path.lexists("/tmp/qdformer-evil")


ZIPS = {
    "a name with ..": [("set/../../precious", b"gone")],
    "an absolute name": [("/tmp/qdformer-evil", b"x")],
    "a drive": [("C:/evil", b"x")],
    "a link": [(unix("set/link", stat.S_IFLNK), b"../../precious")],
    "a device": [(unix("set/device", stat.S_IFCHR), b"")],
}


@pytest.mark.parametrize("members", ZIPS.values(), ids=ZIPS.keys())
def test_an_unsafe_zip_is_refused(tmp_path, place, members):
    with pytest.raises(ArchiveError, match="archive: .*refused"):
        unpack(write_zip(tmp_path / "archive", members), place, progress=False)
    assert not place.exists() and not os.path.lexists("/tmp/qdformer-evil")


def bombs(path):
    zeros = bytes(1 << 20)
    yield "tar", lambda: write_tar(path, [(f"set/{index}", zeros) for index in range(100)], "w:gz")
    yield "zip", lambda: write_zip(path, [(f"set/{index}", zeros) for index in range(100)])

    def long_name():  # a member with a name of 100 MiB
        header = tarfile.TarInfo("././@LongLink")
        header.type, header.size = tarfile.GNUTYPE_LONGNAME, 100 << 20
        with gzip.open(path, "wb") as file:
            file.write(header.tobuf(tarfile.GNU_FORMAT))
            for _ in range(100):
                file.write(b"a" * (1 << 20))

    yield "name", long_name


@pytest.mark.parametrize("kind", ["tar", "zip", "name"])
def test_a_bomb_is_refused_for_its_ratio(tmp_path, place, kind):
    dict(bombs(tmp_path / "archive"))[kind]()
    assert (tmp_path / "archive").stat().st_size < 200_000
    with pytest.raises(ArchiveError, match="unpacks to more than .* bytes; refused as a bomb"):
        unpack(tmp_path / "archive", place, progress=False)
    assert not place.exists()


@pytest.mark.parametrize("write", [write_tar, write_zip])
def test_too_many_members_or_bytes_are_refused(tmp_path, place, write):
    archive = write(tmp_path / "archive")
    with pytest.raises(ArchiveError, match="more than 1 members"):
        unpack(archive, place, Limits(max_members=1), progress=False)
    with pytest.raises(ArchiveError, match="unpacks to more than 4 bytes"):
        unpack(archive, place, Limits(max_bytes=4), progress=False)


def test_a_sparse_file_is_refused(tmp_path, place):
    info = special("set/sparse", tarfile.REGTYPE)
    info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.numblocks": "1", "GNU.sparse.map": "0,0"}
    with tarfile.open(tmp_path / "archive", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(ArchiveError, match="'set/sparse' is no plain file or folder; refused"):
        unpack(tmp_path / "archive", place, progress=False)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no archive" * 99])
@pytest.mark.parametrize("mode", ["w:gz", "zip"])
def test_a_damaged_archive_is_reported(tmp_path, place, mode, damage):
    archive = tmp_path / "archive"
    extra = [("set/noise", os.urandom(100_000))]
    write_zip(archive, extra) if mode == "zip" else write_tar(archive, extra, mode)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ArchiveError, match="archive: not a readable tar or zip archive"):
        unpack(archive, place, progress=False)


def test_a_zip_with_a_flipped_byte_is_reported(tmp_path, place):
    content = bytearray(write_zip(tmp_path / "archive", [("set/noise", os.urandom(100_000))]).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "archive").write_bytes(content)
    with pytest.raises(ArchiveError, match="archive: not a readable"):
        unpack(tmp_path / "archive", place, progress=False)
