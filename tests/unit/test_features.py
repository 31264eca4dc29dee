"""Feature files: one embedding a frame, whole or absent, and only of the weights asked for."""

from __future__ import annotations

import multiprocessing
import pickle

import h5py
import numpy as np
import pytest
import soundfile
import torch

from qdformer.audio.features import VERSION, FeatureError, FeatureInfo, FeatureStore, extract, write_features
from qdformer.audio.vggish import log_mel_patches

INFO = FeatureInfo("clean", "a" * 64, "repeat")
FEATURES = {f"clip{i}": np.random.default_rng(i).random((5, 128), dtype=np.float32) for i in (3, 1, 2)}


class Echo(torch.nn.Module):
    """In place of VGGish: the mean of a patch, in 128 places."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, patches):
        return patches.mean(dim=(1, 2, 3))[:, None].expand(-1, 128) * self.one


@pytest.fixture
def stored(tmp_path):
    path = tmp_path / "features" / "clean.h5"
    assert write_features(path, FEATURES.items(), INFO) == 3
    return path


def test_round_trip(stored):
    store = FeatureStore(stored, "a" * 64)
    assert list(store) == list(FEATURES) and len(store) == 3 and "clip9" not in store
    assert all(np.array_equal(store[uid], FEATURES[uid]) for uid in FEATURES)
    assert store["clip1"].dtype == np.float32
    assert store.info == INFO
    with pytest.raises(KeyError, match="no features of clip clip9"):
        store["clip9"]


def test_the_same_features_give_the_same_bytes(stored, tmp_path):
    write_features(tmp_path / "again.h5", FEATURES.items(), INFO)
    assert (tmp_path / "again.h5").read_bytes() == stored.read_bytes()


def test_a_failure_keeps_the_old_file(stored):
    before = stored.read_bytes()

    def failing():
        yield "clip1", FEATURES["clip1"]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_features(stored, failing(), INFO)
    assert stored.read_bytes() == before


def test_each_clip_is_one_chunk_and_attributes_say_how_it_was_made(stored):
    with h5py.File(stored) as file:
        assert file["embeddings/clip1"].chunks == (5, 128)
        assert dict(file.attrs) == {
            "condition": "clean",
            "weights_sha256": "a" * 64,
            "short_clips": "repeat",
            "sample_rate": 16000,
            "version": VERSION,
            "clips": 3,
        }


def test_other_weights_and_another_version_are_refused(stored):
    with pytest.raises(FeatureError, match="made with VGGish weights a{64}, expected b{64}"):
        FeatureStore(stored, "b" * 64)
    with h5py.File(stored, "a") as file:
        file.attrs["version"] = 99
    with pytest.raises(FeatureError, match=f"version 99, expected {VERSION}"):
        FeatureStore(stored)


def test_what_is_no_feature_file_is_refused(tmp_path):
    with pytest.raises(FeatureError, match="none.h5: no such feature file"):
        FeatureStore(tmp_path / "none.h5")
    (tmp_path / "a.h5").write_bytes(b"something")
    with pytest.raises(FeatureError, match="a.h5: not a feature file"):
        FeatureStore(tmp_path / "a.h5")


def read_one(store: FeatureStore, queue) -> None:
    queue.put(store["clip2"])


def test_an_open_store_goes_to_other_processes(stored):
    store = FeatureStore(stored)
    assert np.array_equal(store["clip1"], FEATURES["clip1"])  # now it holds an open handle
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=read_one, args=(store, queue))
    process.start()
    assert np.array_equal(queue.get(timeout=60), FEATURES["clip2"])
    process.join()
    assert np.array_equal(pickle.loads(pickle.dumps(store))["clip3"], FEATURES["clip3"])


@pytest.mark.parametrize(
    ("seconds", "frames", "short_clips", "own"),
    [(5.0, 5, "repeat", 5), (10.0, 5, "repeat", 5), (3.0, 5, "repeat", 3), (3.0, 5, "zero", 3), (0.5, 2, "zero", 1)],
)
def test_one_embedding_a_frame(tmp_path, seconds, frames, short_clips, own):
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, int(16000 * seconds)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", audio, 16000, subtype="FLOAT")
    ((uid, embeddings),) = extract([("a", tmp_path / "a.wav", frames)], Echo(), short_clips)
    padded = np.pad(audio, (0, max(0, 15600 - len(audio))))
    expected = log_mel_patches(padded, 16000).mean(dim=(1, 2, 3)).numpy()[:own]
    assert uid == "a" and embeddings.shape == (frames, 128) and embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings[:own, 0], expected, rtol=1e-5)
    rest = expected[-1] if short_clips == "repeat" else 0.0
    np.testing.assert_allclose(embeddings[own:, 0], rest, rtol=1e-5)


def test_batches_do_not_change_the_result(tmp_path):
    clips = []
    for index in range(4):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, np.random.default_rng(index).uniform(-0.5, 0.5, 16000 * (index + 1)), 16000)
        clips.append((str(index), path, index + 1))
    one = dict(extract(clips, Echo(), "repeat", batch_patches=1))
    many = dict(extract(clips, Echo(), "repeat", batch_patches=64))
    assert list(one) == list(many) == ["0", "1", "2", "3"]
    for uid in one:
        np.testing.assert_allclose(one[uid], many[uid], atol=1e-6)
