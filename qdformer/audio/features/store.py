"""Features on disk: the HDF5 file of a condition, and the journal of a run that is not finished.

The HDF5 file: the group `embeddings` has one dataset [T, 128] float32 for each clip, named by its uid
and chunked as a whole, with the attribute `sha256`. The file's attributes are those of `FeatureInfo`
and `clips`, their number; the dataset `left_out`, where there is one, names the clips whose sound
could not be used.

The journal is a text file to which a run adds a line for each clip as it gets ready. Killed at any
moment, it leaves at worst a broken last line: HDF5, which keeps its index in memory, can leave a
file that does not open. A line that is damaged fails its own digest and its clip is made anew.

Shapes: T frames, A = 128.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.errors import InputError

FORMAT_VERSION = 2
ShortClips = Literal["repeat", "zero"]
_GROUP, _LEFT_OUT = "embeddings", "left_out"


class FeatureError(InputError):
    """A feature file cannot be used or written; the message names it, what it holds and what was expected."""


@dataclass(frozen=True)
class FeatureInfo:
    """How the features of a file were made.

    `pca` is empty, or the digest that the settings ask of the file of the PCA step.
    """

    condition: str
    weights_sha256: str
    short_clips: ShortClips
    center: bool = False
    pca: str = ""
    sample_rate: int = SAMPLE_RATE
    version: int = FORMAT_VERSION


def write_features(
    path: str | Path, features: Iterable[tuple[str, np.ndarray]], info: FeatureInfo, left_out: Sequence[str] = ()
) -> int:
    """Write a feature file and return its number of clips.

    It is written beside `path` under another name and moved there when it is on the disk as a
    whole. The same features give the same bytes.

    Raises:
        FeatureError: it cannot be written, the disk being full for instance; what was at `path` is still there.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        output = _Output(partial, "w+")
    try:
        with output:
            count = _write(path, output, features, info, left_out)
            output.check(path)
            with _naming(path):
                os.fsync(output.fileno())
        with _naming(path):
            os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return count


class _Output(io.FileIO):
    """A file that HDF5 writes through. HDF5 crashes at exit when it cannot write what it has in memory: on a
    full disk it is told that all went well, and `check` raises what really happened."""

    _error: OSError | None = None

    def check(self, path: Path) -> None:
        """Raise `FeatureError`, with `path` in it, if anything could not be written."""
        if self._error:
            raise FeatureError(f"{path}: cannot be written: {self._error.strerror}")

    def write(self, data: memoryview) -> int:
        rest = memoryview(data)
        try:
            while rest and not self._error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = error
            return size or 0


def _write(
    path: Path, output: _Output, features: Iterable[tuple[str, np.ndarray]], info: FeatureInfo, left_out: Sequence[str]
) -> int:
    count = 0
    with h5py.File(output, "w", libver="v110") as file:
        group = file.create_group(_GROUP, track_order=True)
        for uid, embeddings in features:
            clip = group.create_dataset(uid, data=embeddings.astype("<f4"), chunks=embeddings.shape, track_times=False)
            clip.attrs["sha256"] = clip_digest(uid, embeddings)
            output.check(path)
            count += 1
        if left_out:
            file.create_dataset(_LEFT_OUT, data=list(left_out), dtype=h5py.string_dtype(), track_times=False)
        for name, value in (asdict(info) | {"clips": count}).items():
            file.attrs[name] = value
    return count


class FeatureStore(Mapping[str, np.ndarray]):
    """Features of a file by clip uid: [T, 128] float32, read and checked against their digest when asked for.

    The file is opened at the first read, anew in each process, so that a store can be passed to
    data-loader workers by fork or pickle.

    Args:
        path: the file.
        expected: fields of `FeatureInfo` and the values they must have, such as `weights_sha256`.

    Raises:
        FeatureError: the file is missing, damaged, of another version, or made with other weights
            or settings.
    """

    def __init__(self, path: str | Path, **expected: object) -> None:
        self.path = Path(path)
        self._handle: tuple[int, h5py.File] | None = None
        self.info, self.left_out = _read_info(self.path)
        others = [
            f"made with {name} {getattr(self.info, name)!r}, expected {value!r}"
            for name, value in expected.items()
            if getattr(self.info, name) != value
        ]
        if others:
            raise FeatureError(f"{self.path}: {'; '.join(others)}")

    def __getitem__(self, uid: str) -> np.ndarray:
        group = self._group()
        if uid not in group:
            raise KeyError(f"{self.path}: no features of clip {uid}")
        try:
            clip = group[uid]
            embeddings, digest = clip[()], clip.attrs["sha256"]
        except (OSError, KeyError) as error:
            raise FeatureError(f"{self.path}: the features of clip {uid} cannot be read: {error}") from None
        if (found := clip_digest(uid, embeddings)) != digest:
            raise FeatureError(f"{self.path}: the features of clip {uid} are damaged: SHA-256 {found}, not {digest}")
        return embeddings

    def __iter__(self) -> Iterator[str]:
        return iter(self._group())

    def __len__(self) -> int:
        return len(self._group())

    def __contains__(self, uid: object) -> bool:
        return uid in self._group()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handle": None}

    def verify(self) -> None:
        """Read every clip; raise `FeatureError` at the first that is damaged."""
        for uid in self:
            self[uid]

    def close(self) -> None:
        """Close this process's handle; the next read opens another."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    def _group(self) -> h5py.Group:
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), h5py.File(self.path, "r"))
        return self._handle[1][_GROUP]


class Journal:
    """The clips that a run has finished, kept until its feature file is written; a context manager.

    Only one process at a time can hold a journal; its lock ends with it. What it holds of another
    `info`, or of a clip whose stamp changed, is not used.

    Args:
        path: the file.
        info: how the features are made.

    Raises:
        FeatureError: another process holds it, or it cannot be written.
    """

    def __init__(self, path: str | Path, info: FeatureInfo) -> None:
        self.path = Path(path)
        self._info = info
        self._places: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Journal:
        with _naming(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise FeatureError(
                f"{self.path}: another process is making the features of {self._info.condition}"
            ) from None
        self._recover()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # on a full disk closing tries again what `add` has told of
            self._file.close()

    def has(self, uid: str, stamp: str) -> bool:
        """Whether the clip is here, made from the sound that has this stamp."""
        return uid in self._places and self._places[uid][0] == stamp

    def add(self, clips: Iterable[tuple[str, str, np.ndarray]]) -> None:
        """Keep clips, given as (uid, stamp, [T, 128] float32)."""
        with _naming(self.path):
            self._file.seek(0, os.SEEK_END)
            for uid, stamp, embeddings in clips:
                self._places[uid] = (stamp, self._file.tell())
                self._file.write(_line(uid, stamp, embeddings))
            self._file.flush()

    def read(self, uid: str) -> np.ndarray:
        """The clip's embeddings [T, 128] float32; raise `FeatureError` if they were damaged meanwhile."""
        self._file.seek(self._places[uid][1])
        if (entry := _parse(self._file.readline())) is None:
            raise FeatureError(f"{self.path}: the features of clip {uid} are damaged; start again")
        return entry[2]

    def finish(self) -> None:
        """Empty the journal, its clips now being in the feature file."""
        self._places.clear()
        self._file.truncate(0)

    def _recover(self) -> None:
        header = json.dumps(asdict(self._info)).encode() + b"\n"
        self._file.seek(0)
        if self._file.readline() != header:
            with _naming(self.path):
                self._file.truncate(0)
                self._file.write(header)
                self._file.flush()
            return
        place = self._file.tell()
        while (line := self._file.readline()).endswith(b"\n"):
            if entry := _parse(line):
                self._places[entry[0]] = (entry[1], place)
            place = self._file.tell()
        self._file.truncate(place)  # a line that was not finished


def clip_digest(uid: str, embeddings: np.ndarray) -> str:
    """Hex SHA-256 of a clip's name, shape and numbers."""
    head = f"{uid} {list(embeddings.shape)} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(embeddings, "<f4").tobytes()).hexdigest()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file in what the operating system says about writing it."""
    try:
        yield
    except OSError as error:
        raise FeatureError(f"{path}: cannot be written: {error.strerror}") from error


def _read_info(path: Path) -> tuple[FeatureInfo, frozenset[str]]:
    if not path.is_file():
        raise FeatureError(f"{path}: no such feature file; the stage features writes it")
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs["version"]
            if version != FORMAT_VERSION:
                raise FeatureError(f"{path}: features of version {version}, expected {FORMAT_VERSION}; make them again")
            values = {name: file.attrs[name] for name in FeatureInfo.__dataclass_fields__}
            complete = _GROUP in file and len(file[_GROUP]) == file.attrs["clips"]
            left_out = frozenset(file[_LEFT_OUT].asstr()[()] if _LEFT_OUT in file else ())
    except (OSError, KeyError) as error:
        raise FeatureError(f"{path}: not a feature file: {error}") from None
    if not complete:
        raise FeatureError(f"{path}: does not hold all the clips it was made of")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    return FeatureInfo(**plain), left_out


def _line(uid: str, stamp: str, embeddings: np.ndarray) -> bytes:
    entry = {
        "uid": uid,
        "stamp": stamp,
        "sha256": clip_digest(uid + stamp, embeddings),
        "shape": embeddings.shape,
        "data": base64.b64encode(np.ascontiguousarray(embeddings, "<f4").tobytes()).decode("ascii"),
    }
    return json.dumps(entry).encode() + b"\n"


def _parse(line: bytes) -> tuple[str, str, np.ndarray] | None:
    """What a line says, or None if it is damaged."""
    try:
        entry = json.loads(line)
        embeddings = np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(entry["shape"])
        whole = clip_digest(entry["uid"] + entry["stamp"], embeddings) == entry["sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    return (entry["uid"], entry["stamp"], embeddings) if whole else None
