"""Controls: negatives, and their independence from the other clips of the test set."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import soundfile
import torch

from qdformer.audio.features.extract import Clip, Embedder
from qdformer.audio.io.read import AudioError
from qdformer.audio.noise.collect import NOISE_COLUMNS
from qdformer.audio.noise.mixing import SILENT_CLIP_REFERENCE_RMS, select_noise
from qdformer.data.layout import DataError
from qdformer.evaluation.controls import OffScreen, noise_features


class Level(torch.nn.Module):
    """In place of VGGish: the mean of a patch, and its spread, in 128 places."""

    def forward(self, patches):
        return torch.stack([patches.mean(dim=(1, 2, 3)), patches.std(dim=(1, 2, 3))], 1).repeat(1, 64)


EMBEDDER = Embedder(Level(), "repeat")


def table(*rows):
    return pandas.DataFrame(
        [{"uid": uid, "classes": classes, "frames": frames, "silent": not classes, "off_screen": off, "split": "test"}
         for uid, classes, frames, off in rows]
    )  # fmt: skip


CLIPS = table(
    ("a", ("dog",), 3, False),
    ("b", ("dog", "cat"), 3, False),
    ("c", ("bell",), 5, False),
    ("d", (), 3, False),
    ("e", ("drum",), 2, True),
    ("f", ("cat",), 2, False),
)
FEW = CLIPS[CLIPS["uid"] != "c"]
FEATURES = {row.uid: np.full((row.frames, 128), index, np.float32) for index, row in enumerate(CLIPS.itertuples())}


def test_off_screen_sound_has_none_of_the_clips_classes():
    features = OffScreen(FEATURES, CLIPS, CLIPS, seed=0)
    classes = dict(zip(CLIPS["uid"], CLIPS["classes"], strict=True))
    assert set(features) == set(CLIPS["uid"]) and len(features) == 6
    for uid, source in features.source.items():
        assert not {*classes[uid]} & {*classes[source]} and classes[source] and source != "e"
        assert features[uid].shape == FEATURES[uid].shape
        assert (features[uid] == FEATURES[source][0]).all()
    assert features.source["b"] == "c"
    assert any(OffScreen(FEATURES, CLIPS, CLIPS, seed).source != features.source for seed in range(1, 9))


def test_off_screen_sound_depends_on_other_clips_only_if_it_is_theirs():
    source_of = OffScreen(FEATURES, CLIPS, CLIPS, seed=0).source
    for gone in "abdef":
        left = CLIPS[CLIPS["uid"] != gone]
        rest = OffScreen(FEATURES, left, left, seed=0).source
        assert all(rest[uid] == source for uid, source in source_of.items() if gone not in (uid, source))


def test_clip_without_candidate_is_named_in_the_error():
    message = "clip b: no other clip has a named sound of classes that are not in this clip's picture"
    with pytest.raises(DataError, match=message):
        OffScreen(FEATURES, FEW, FEW, seed=0)


def test_off_screen_sound_comes_from_another_split_if_necessary():
    rest = CLIPS[CLIPS["uid"] == "c"].assign(split="train")
    features = OffScreen(FEATURES, FEW, pandas.concat([FEW, rest]), seed=0)
    assert features.source["b"] == "c" and set(features) == set(FEW["uid"])
    assert all(source != "c" for uid, source in features.source.items() if uid != "b")


def noises(folder, *splits):
    rows = []
    for index, split in enumerate(splits):
        path = folder / f"{index}.wav"
        soundfile.write(path, np.random.default_rng(index).normal(0, 0.1, 9 * 16000).clip(-1, 1), 16000)
        rows.append({"path": path, "split": split})
    return pandas.DataFrame(rows, columns=list(NOISE_COLUMNS))


def test_noise_alone_equals_the_noise_of_the_mixture(tmp_path):
    pool = noises(tmp_path, "test", "train", "test")
    features = noise_features(CLIPS, pool, EMBEDDER, seed=4)
    assert list(features) == CLIPS["uid"].tolist()
    own = [pool["path"][0], pool["path"][2]]
    for clip in CLIPS.itertuples():
        piece = select_noise(own, 4, clip.uid, clip.frames * 16000).audio
        level = piece * np.float32(SILENT_CLIP_REFERENCE_RMS / np.sqrt(np.mean(piece.astype(np.float64) ** 2)))
        soundfile.write(tmp_path / "alone.wav", level, 16000, subtype="FLOAT")
        (alone,) = EMBEDDER.embed([Clip(clip.uid, tmp_path / "alone.wav", clip.frames)])
        assert np.array_equal(features[clip.uid], alone.embeddings)
    few = noise_features(CLIPS[2:4], pool, EMBEDDER, seed=4)
    assert all(np.array_equal(few[uid], features[uid]) for uid in few)
    with pytest.raises(AudioError, match="clip a: no noise to select from"):
        noise_features(CLIPS, noises(tmp_path, "train"), EMBEDDER, seed=4)


def test_white_noise_without_noise_recordings(tmp_path):
    features = noise_features(CLIPS, noises(tmp_path), EMBEDDER, seed=4)
    again = noise_features(CLIPS[1:], noises(tmp_path), EMBEDDER, seed=4)
    assert all(np.array_equal(again[uid], features[uid]) for uid in again)
    assert len({values[0].tobytes() for values in features.values()}) == 6
    uniform = (
        np.random.default_rng(0).uniform(-1, 1, 5 * 16000).astype(np.float32) * np.sqrt(3) * SILENT_CLIP_REFERENCE_RMS
    )
    (expected,) = EMBEDDER.embed_waveforms([uniform], [5])
    assert features["c"].mean(axis=0) == pytest.approx(expected.mean(axis=0), abs=0.05)
