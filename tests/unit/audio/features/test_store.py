"""Feature files: atomic writes, checks of content and settings, the journal, and failing disks."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from qdformer.audio.features import store as store_module
from qdformer.audio.features.store import (
    FORMAT_VERSION,
    FeatureError,
    FeatureInfo,
    FeatureStore,
    Journal,
    clip_digest,
    write_features,
)

INFO = FeatureInfo("clean", "a" * 64, "repeat")
FEATURES = {f"clip{i}": np.random.default_rng(i).random((5, 128), dtype=np.float32) for i in (3, 1, 2)}


@pytest.fixture
def stored(tmp_path) -> Path:
    path = tmp_path / "features" / "clean.h5"
    assert write_features(path, FEATURES.items(), INFO) == 3
    return path


def test_round_trip(stored):
    store = FeatureStore(stored, weights_sha256="a" * 64)
    assert list(store) == list(FEATURES) and len(store) == 3 and "clip9" not in store
    assert all(np.array_equal(store[uid], FEATURES[uid]) for uid in FEATURES)
    assert store["clip1"].dtype == np.float32
    assert store.info == INFO and store.left_out == frozenset()
    store.verify()
    with pytest.raises(KeyError, match="no features of clip clip9"):
        store["clip9"]


def test_the_same_features_give_the_same_bytes(stored, tmp_path):
    write_features(tmp_path / "again.h5", FEATURES.items(), INFO)
    assert (tmp_path / "again.h5").read_bytes() == stored.read_bytes()


def test_clips_left_out_are_stored(tmp_path):
    write_features(tmp_path / "a.h5", FEATURES.items(), INFO, ["clip7", "clip8"])
    assert FeatureStore(tmp_path / "a.h5").left_out == {"clip7", "clip8"}


def test_a_failure_keeps_the_old_file(stored):
    before = stored.read_bytes()

    def failing():
        yield "clip1", FEATURES["clip1"]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="^stop$"):
        write_features(stored, failing(), INFO)
    assert stored.read_bytes() == before
    assert [path.name for path in stored.parent.iterdir()] == ["clean.h5"]


def test_each_clip_is_one_chunk_and_attributes_say_how_it_was_made(stored):
    with h5py.File(stored) as file:
        assert file["embeddings/clip1"].chunks == (5, 128)
        assert file["embeddings/clip1"].attrs["sha256"] == clip_digest("clip1", FEATURES["clip1"])
        assert dict(file.attrs) == {
            "condition": "clean",
            "weights_sha256": "a" * 64,
            "short_clips": "repeat",
            "center": False,
            "pca": "",
            "sample_rate": 16000,
            "version": FORMAT_VERSION,
            "clips": 3,
        }


def test_other_weights_and_settings_are_refused(stored):
    with pytest.raises(FeatureError, match="extracted with weights_sha256 'a{64}', expected 'b{64}'"):
        FeatureStore(stored, weights_sha256="b" * 64)
    with pytest.raises(
        FeatureError, match="short_clips 'repeat', expected 'zero'; extracted with center False, expected T"
    ):
        FeatureStore(stored, short_clips="zero", center=True, pca="")


def test_another_version_is_refused(stored):
    with h5py.File(stored, "a") as file:
        file.attrs["version"] = 99
    with pytest.raises(FeatureError, match=f"version 99, expected {FORMAT_VERSION}"):
        FeatureStore(stored)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FeatureError, match="none.h5: no such feature file"):
        FeatureStore(tmp_path / "none.h5")
    (tmp_path / "a.h5").write_bytes(b"something")
    with pytest.raises(FeatureError, match="a.h5: not a feature file"):
        FeatureStore(tmp_path / "a.h5")


def test_a_flipped_bit_is_detected_in_its_clip(stored):
    content = bytearray(stored.read_bytes())
    content[content.index(FEATURES["clip1"].tobytes()) + 100] ^= 1
    stored.write_bytes(content)
    store = FeatureStore(stored)
    assert np.array_equal(store["clip3"], FEATURES["clip3"])
    with pytest.raises(FeatureError, match="clean.h5: the features of clip clip1 are damaged"):
        store["clip1"]
    with pytest.raises(FeatureError, match="clip1 are damaged"):
        store.verify()


def read_one(store: FeatureStore, queue) -> None:
    queue.put(store["clip2"])


def test_an_open_store_can_be_passed_to_other_processes(stored):
    store = FeatureStore(stored)
    assert np.array_equal(store["clip1"], FEATURES["clip1"])  # the store now has an open handle
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=read_one, args=(store, queue))
    process.start()
    assert np.array_equal(queue.get(timeout=60), FEATURES["clip2"])
    process.join()
    assert np.array_equal(pickle.loads(pickle.dumps(store))["clip3"], FEATURES["clip3"])


def test_a_reader_is_not_disturbed_by_a_new_file(stored):
    store = FeatureStore(stored)
    assert np.array_equal(store["clip1"], FEATURES["clip1"])
    write_features(stored, [("clip1", np.zeros((5, 128), np.float32))], INFO)
    assert np.array_equal(store["clip2"], FEATURES["clip2"])
    assert not FeatureStore(stored)["clip1"].any()


def fill(journal: Journal, *uids: str) -> None:
    journal.add((uid, f"stamp of {uid}", FEATURES[uid]) for uid in uids)


def kept(path: Path, info: FeatureInfo = INFO) -> list[str]:
    with Journal(path, info) as journal:
        uids = [uid for uid in FEATURES if journal.has(uid, f"stamp of {uid}")]
        assert all(np.array_equal(journal.read(uid), FEATURES[uid]) for uid in uids)
    return uids


def test_a_journal_keeps_clips_of_the_same_sound_and_settings(tmp_path):
    path = tmp_path / "cache" / "clean.journal"
    with Journal(path, INFO) as journal:
        fill(journal, "clip3")
        assert np.array_equal(journal.read("clip3"), FEATURES["clip3"])
        fill(journal, "clip1")
    assert kept(path) == ["clip3", "clip1"]
    with Journal(path, INFO) as journal:
        assert not journal.has("clip3", "another stamp")
    assert kept(path, FeatureInfo("clean", "b" * 64, "repeat")) == []
    assert kept(path) == []  # it was reset


@pytest.mark.parametrize("cut", [1, 100, 3000, 5000])
def test_a_truncated_journal_is_recovered(tmp_path, cut):
    path = tmp_path / "clean.journal"
    with Journal(path, INFO) as journal:
        fill(journal, *FEATURES)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - cut)
    remaining = kept(path)
    assert remaining == list(FEATURES)[: 2 if cut < 3700 else 1]
    with Journal(path, INFO) as journal:
        fill(journal, "clip2")
    assert kept(path) == [*[uid for uid in remaining if uid != "clip2"], "clip2"]


def test_damaged_lines_of_a_journal_are_not_used(tmp_path):
    path = tmp_path / "clean.journal"
    with Journal(path, INFO) as journal:
        fill(journal, *FEATURES)
    content = bytearray(path.read_bytes())
    content[content.index(b"stamp of clip1") + 300] ^= 1
    path.write_bytes(content)
    assert kept(path) == ["clip3", "clip2"]
    path.write_bytes(b"\x00garbage" * 100)
    assert kept(path) == []


HOLDER = """
import sys
from qdformer.audio.features.store import FeatureInfo, Journal
with Journal(sys.argv[1], FeatureInfo("clean", "a" * 64, "repeat")):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_ends(tmp_path):
    path = tmp_path / "clean.journal"
    with Journal(path, INFO) as journal:
        fill(journal, *FEATURES)
    before = path.read_bytes()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(FeatureError, match="another process is extracting the features of clean"), Journal(path, INFO):
        pass
    assert path.read_bytes() == before
    holder.kill()
    holder.wait()
    assert kept(path) == list(FEATURES)


class FullDisk:
    """A file on a disk that is full after `room` bytes."""

    def __init__(self, file, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def test_a_full_disk_under_the_journal(tmp_path):
    path = tmp_path / "clean.journal"
    with (
        pytest.raises(FeatureError, match="clean.journal: cannot be written: No space left on device"),
        Journal(path, INFO) as journal,
    ):
        journal._file = FullDisk(journal._file, room=5000)
        fill(journal, *FEATURES)
    assert kept(path) == ["clip3"]


def test_a_full_disk_under_the_feature_file(stored, monkeypatch):
    before = stored.read_bytes()

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module.os, "fsync", no_space)
    with pytest.raises(FeatureError, match="clean.h5: cannot be written: No space left on device"):
        write_features(stored, FEATURES.items(), INFO)
    assert stored.read_bytes() == before
    assert [path.name for path in stored.parent.iterdir()] == ["clean.h5"]


def test_the_system_refuses_to_write_more(stored):
    """HDF5's own writes fail, because the process may not write files above 20 kB."""
    before = stored.read_bytes()
    code = f"""
    import numpy as np
    from qdformer.audio.features.store import FeatureInfo, write_features
    clips = ((f"clip{{i}}", np.zeros((5, 128), np.float32)) for i in range(100))
    write_features({str(stored)!r}, clips, FeatureInfo("clean", "a" * 64, "repeat"))
    print("saved")
    """
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, preexec_fn=limit)
    assert done.returncode != 0 and "saved" not in done.stdout
    assert "clean.h5: cannot be written" in done.stderr and "File too large" in done.stderr
    assert stored.read_bytes() == before
    assert [path.name for path in stored.parent.iterdir()] == ["clean.h5"]


@pytest.fixture
def read_only(tmp_path) -> Iterator[Path]:
    """A read-only folder. Root, who could write to it, becomes the user nobody."""
    os.chmod(tmp_path, 0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield tmp_path
    os.seteuid(user)
    os.chmod(tmp_path, 0o755)


def test_a_read_only_folder(read_only):
    with pytest.raises(FeatureError, match="a.h5: cannot be written: Permission denied"):
        write_features(read_only / "a.h5", FEATURES.items(), INFO)
    with pytest.raises(FeatureError, match="a.journal: cannot be written: Permission denied"):
        Journal(read_only / "a.journal", INFO).__enter__()
