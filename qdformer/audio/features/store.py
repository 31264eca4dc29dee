"""Features on disk: the HDF5 file of a condition, and the journal of an unfinished run.

In the HDF5 file, the group `embeddings` has one dataset [T, 128] float32 per clip ([T, V, 128] for V separated tracks),
named by its uid and stored as one chunk, with the attribute `sha256`. The attributes of the file are the fields of
`FeatureInfo` and `clips`, the number of clips. The optional dataset `left_out` names the clips whose audio is not
usable.

The journal is a text file with one line per finished clip. A run that is killed leaves at worst a damaged last line,
whereas HDF5, which keeps its index in memory, can leave a file that does not open. A damaged line fails its digest, and
its clip is computed again.

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
from typing import TYPE_CHECKING, Literal

import h5py
import numpy as np

from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.errors import InputError
from qdformer.utils.files import new_file

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMAT_VERSION = 2
ShortClips = Literal["repeat", "zero"]
_GROUP, _LEFT_OUT = "embeddings", "left_out"


class FeatureError(InputError):
    """A feature file is not usable or cannot be written; the message names it, its content and what was expected."""


@dataclass(frozen=True)
class FeatureInfo:
    """How the features of a file were extracted.

    `pca` is empty without the PCA step, otherwise the expected digest of its file. `separator` is empty for the clips'
    sounds as they are, otherwise the SHA-256 of the separator whose tracks were embedded; an empty one is not written.
    """

    condition: str
    weights_sha256: str
    short_clips: ShortClips
    center: bool = False
    pca: str = ""
    sample_rate: int = SAMPLE_RATE
    version: int = FORMAT_VERSION
    separator: str = ""

    def attributes(self) -> dict[str, str | int | bool]:
        """What a file records."""
        return {name: value for name, value in asdict(self).items() if value or name != "separator"}


def write_features(
    path: str | Path, features: Iterable[tuple[str, np.ndarray]], info: FeatureInfo, left_out: Sequence[str] = ()
) -> int:
    """Write a feature file atomically and return its number of clips. The same features give the same bytes.

    Raises:
        FeatureError: the file cannot be written, for example because the disk is full; `path` is unchanged.
    """
    path = Path(path)
    with _write_errors(path), new_file(path) as partial, _Output(partial, "w+") as output:
        count = _write(path, output, features, info, left_out)
        output.check(path)
        os.fsync(output.fileno())
    return count


class _Output(io.FileIO):
    """A file for HDF5 to write to, which reports write errors in `check` only.

    HDF5 crashes at exit if it cannot write what it holds in memory, so every write must appear to succeed.
    """

    _error: OSError | None = None

    def check(self, path: Path) -> None:
        """Raise a `FeatureError` that names `path` if a write failed."""
        if self._error:
            raise FeatureError(f"{path}: cannot be written: {self._error.strerror}")

    def write(self, data: Buffer) -> int:
        rest = memoryview(data)
        try:
            while rest and not self._error:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self._error = error
        return memoryview(data).nbytes

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
        for name, value in (info.attributes() | {"clips": count}).items():
            file.attrs[name] = value
    return count


class FeatureStore(Mapping[str, np.ndarray]):
    """The features of a file by clip uid: [T, 128] or [T, V, 128] float32, checked against their digest at each read.

    Each process opens the file at its first read, so that a store can be passed to data-loader workers by fork or
    pickle.

    Args:
        path: the file.
        expected: required values of fields of `FeatureInfo`, such as `weights_sha256`.

    Raises:
        FeatureError: the file is missing, damaged, of another version, or extracted with other weights or settings.
    """

    def __init__(self, path: str | Path, **expected: object) -> None:
        self.path = Path(path)
        self._handle: tuple[int, h5py.File] | None = None
        self.info, self.left_out = _read_info(self.path)
        others = [
            f"extracted with {name} {getattr(self.info, name)!r}, expected {value!r}"
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
        """Read every clip; raise `FeatureError` for the first one that is damaged."""
        for uid in self:
            self[uid]

    def close(self) -> None:
        """Close the handle of this process; the next read opens the file again."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    def _group(self) -> h5py.Group:
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), h5py.File(self.path, "r"))
        return self._handle[1][_GROUP]


class Journal:
    """The finished clips of a run, kept for the next one; a context manager.

    A journal is locked by one process at a time. Its content is discarded if it has another `info`, and a clip is
    ignored if its stamp has changed.

    Args:
        path: the file.
        info: how the features are extracted.

    Raises:
        FeatureError: another process holds the lock, or the file cannot be written.
    """

    def __init__(self, path: str | Path, info: FeatureInfo) -> None:
        self.path = Path(path)
        self._info = info
        self._offsets: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> Journal:
        with _write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise FeatureError(
                f"{self.path}: another process is extracting the features of {self._info.condition}"
            ) from None
        self._recover()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # on a full disk, closing repeats the failed write of `add`
            self._file.close()

    def has(self, uid: str, stamp: str) -> bool:
        """Whether the journal has the clip with this stamp."""
        return uid in self._offsets and self._offsets[uid][0] == stamp

    def add(self, clips: Iterable[tuple[str, str, np.ndarray]]) -> None:
        """Add clips, given as (uid, stamp, [T, 128] float32)."""
        with _write_errors(self.path):
            self._file.seek(0, os.SEEK_END)
            for uid, stamp, embeddings in clips:
                self._offsets[uid] = (stamp, self._file.tell())
                self._file.write(_line(uid, stamp, embeddings))
            self._file.flush()

    def read(self, uid: str) -> np.ndarray:
        """The embeddings [T, 128] float32 of a clip; raises `FeatureError` if they are damaged."""
        self._file.seek(self._offsets[uid][1])
        if (entry := _parse(self._file.readline())) is None:
            raise FeatureError(f"{self.path}: the features of clip {uid} are damaged; run the stage again")
        return entry[2]

    def finish(self, clips: int) -> None:
        """Call it after `clips` clips were written to the feature file. A journal with twice as many is emptied."""
        if len(self._offsets) > 2 * clips:
            self._offsets.clear()
            self._file.truncate(0)

    def _recover(self) -> None:
        header = json.dumps(self._info.attributes()).encode() + b"\n"
        self._file.seek(0)
        if self._file.readline() != header:
            with _write_errors(self.path):
                self._file.truncate(0)
                self._file.write(header)
                self._file.flush()
            return
        offset = self._file.tell()
        while (line := self._file.readline()).endswith(b"\n"):
            if entry := _parse(line):
                self._offsets[entry[0]] = (entry[1], offset)
            offset = self._file.tell()
        self._file.truncate(offset)  # drops an unfinished line


def clip_digest(uid: str, embeddings: np.ndarray) -> str:
    """Hex SHA-256 of the uid, shape and values of a clip."""
    head = f"{uid} {list(embeddings.shape)} ".encode()
    return hashlib.sha256(head + np.ascontiguousarray(embeddings, "<f4").tobytes()).hexdigest()


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` into a `FeatureError` that names the file."""
    try:
        yield
    except OSError as error:
        raise FeatureError(f"{path}: cannot be written: {error.strerror or error}") from error


def _read_info(path: Path) -> tuple[FeatureInfo, frozenset[str]]:
    if not path.is_file():
        raise FeatureError(f"{path}: no such feature file; the stage features writes it")
    try:
        with h5py.File(path, "r") as file:
            version = file.attrs["version"]
            if version != FORMAT_VERSION:
                raise FeatureError(
                    f"{path}: features of version {version}, expected {FORMAT_VERSION}; extract them again"
                )
            required = (name for name in FeatureInfo.__dataclass_fields__ if name != "separator")
            values = {name: file.attrs[name] for name in required} | {"separator": file.attrs.get("separator", "")}
            complete = _GROUP in file and len(file[_GROUP]) == file.attrs["clips"]
            left_out = frozenset(file[_LEFT_OUT].asstr()[()] if _LEFT_OUT in file else ())
    except (OSError, KeyError) as error:
        raise FeatureError(f"{path}: not a feature file: {error}") from None
    if not complete:
        raise FeatureError(f"{path}: incomplete: the number of clips differs from the attribute clips")
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
    """The entry of a line, or None if it is damaged."""
    try:
        entry = json.loads(line)
        embeddings = np.frombuffer(base64.b64decode(entry["data"]), "<f4").reshape(entry["shape"])
        intact = clip_digest(entry["uid"] + entry["stamp"], embeddings) == entry["sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    return (entry["uid"], entry["stamp"], embeddings) if intact else None
