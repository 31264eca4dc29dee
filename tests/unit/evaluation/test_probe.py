"""The linear probe: it finds what the features hold, its penalty comes from validation, visible classes restrict it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from qdformer.audio.features.extract import Clip, Embedder
from qdformer.data.layout import track_paths, write_clip
from qdformer.evaluation.probe import (
    MAX_CLIPS,
    LinearProbe,
    _drawn,
    fit_probe,
    labeled_frames,
    probe_scores,
    track_scores,
)
from qdformer.metrics import SoundingScores
from qdformer.utils.constants import SAMPLE_RATE

FRAMES = 3


class Classes(SimpleNamespace):
    def __len__(self):
        return len(self.names)


CLASSES = Classes(names=("dog", "bell", "drum"), unseen=(False,) * 3)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A manifest and features in which each class adds its own pattern to the features of a frame, and noise."""
    folder, random = tmp_path_factory.mktemp("labels"), np.random.default_rng(0)
    patterns = np.maximum(random.normal(size=(3, 128)), 0)
    patterns[:, :8] = 0  # features that are always 0
    rows, features, present = [], {}, {}
    for index in range(90):
        split = "train" if index < 60 else "val" if index < 75 else "test"
        uid, on = f"{split}-{index}", random.random((FRAMES, 3)) < 0.4
        paths = [folder / f"{uid}-{frame}.png" for frame in range(FRAMES)]
        for path, classes in zip(paths, on, strict=True):
            labels = np.zeros((4, 4), np.uint8)
            labels[0, :3], labels[3] = np.where(classes, (1, 2, 3), 0), 255
            Image.fromarray(labels).save(path)
        noise = 0.1 * random.random((FRAMES, 128)) * (np.arange(128) >= 8)
        features[uid], present[uid] = (on @ patterns + noise).astype(np.float32), on
        known = tuple(name for name, value in zip(CLASSES.names, on.any(axis=0), strict=True) if value)
        row = {"uid": uid, "split": split, "labels": tuple(paths), "labeled": FRAMES, "binary": False, "visible": known}
        rows.append(row)
    return pandas.DataFrame(rows), features, present


def test_labeled_frames_and_their_sources(data):
    clips, features, present = data
    clips = clips.head(2).copy()
    clips.at[1, "labels"] = (clips["labels"][1][0], None, None)
    inputs, sources = labeled_frames(clips, features, CLASSES, "avss")
    assert inputs.shape == (4, 128) and inputs[3] == pytest.approx(features["train-1"][0])
    assert sources.tolist() == [*present["train-0"].tolist(), present["train-1"][0].tolist()]
    _, binary = labeled_frames(clips, features, Classes(names=("object",)), "avs")
    assert binary[:, 0].tolist() == sources.any(axis=1).tolist()


def test_the_probe_finds_linear_patterns(data):
    clips, features, present = data
    probe = fit_probe(clips, features, CLASSES, "avss")
    assert np.array_equal(probe.weight_AC, fit_probe(clips, features, CLASSES, "avss").weight_AC)
    test = clips[clips["split"] == "test"]
    scores = probe_scores(probe, features, test, CLASSES)
    assert list(scores) == ["probe", "probe_visible"] and list(scores["probe"]) == test["uid"].tolist()
    measured = SoundingScores(3)
    for uid in test["uid"]:
        assert scores["probe"][uid].shape == (FRAMES, 3)
        measured.update(scores["probe"][uid], present[uid])
    values = {key: value[0] for key, value in measured.compute(measured.all_indices).items()}
    assert values["sounding_map"] > 0.99 and values["sounding_exact_2"] > 0.95


def test_training_labels_alone_decide_without_validation(data):
    clips, features, _ = data
    train = clips[clips["split"] == "train"]
    assert fit_probe(train, features, CLASSES, "avss") is not None
    assert fit_probe(clips[clips["split"] == "test"], features, CLASSES, "avss") is None
    test = clips[clips["split"] == "test"]
    assert probe_scores(None, features, test, CLASSES) == {"probe": {}, "probe_visible": {}}


def test_visible_classes_restrict_the_probe():
    probe = LinearProbe(np.zeros(128), np.ones(128), np.zeros((128, 3)), np.array([2.0, 0.0, 1.0]))
    features = dict.fromkeys("abcd", np.zeros((2, 128)))
    visible = [("bell", "drum"), None, (), ("object",)]
    scores = probe_scores(probe, features, pandas.DataFrame({"uid": list("abcd"), "visible": visible}), CLASSES)
    free = 1 / (1 + np.exp([-2.0, 0.0, -1.0]))
    assert scores["probe"]["a"] == pytest.approx(np.stack([free, free]))
    assert scores["probe_visible"]["a"] == pytest.approx(np.stack([free, free]) * [0, 1, 1])
    assert list(scores["probe_visible"]) == ["a", "c"] and not scores["probe_visible"]["c"].any()


class Level(torch.nn.Module):
    """In place of VGGish: the mean of a patch, and its spread, in 128 places."""

    def forward(self, patches):
        return torch.stack([patches.mean(dim=(1, 2, 3)), patches.std(dim=(1, 2, 3))], 1).repeat(1, 64)


@pytest.mark.parametrize("center", [False, True])
def test_tracks_replace_the_mixture_where_several_sound(tmp_path, center):
    random, folder = np.random.default_rng(0), tmp_path / "v1m" / "two"
    on_VT = np.array([[1, 1, 0], [0, 1, 1]]).repeat(SAMPLE_RATE, axis=1)
    tracks = random.uniform(-0.4, 0.4, on_VT.shape) * on_VT * [[1], [0.1]]
    pictures = np.zeros((FRAMES, 8, 8, 3), np.uint8), np.zeros((FRAMES, 8, 8), np.uint8)
    write_clip(tmp_path, "v1m", "two", *pictures, tracks.sum(axis=0), tracks=list(tracks))
    for uid, audio in {"none": tracks.sum(axis=0), "silent": np.zeros(FRAMES * SAMPLE_RATE)}.items():
        write_clip(tmp_path, "v1m", uid, *pictures, audio)
    embedder = Embedder(Level(), "repeat", center)
    config = SimpleNamespace(center=center, load=lambda: embedder)
    rows = [
        {"uid": uid, "frames": FRAMES, "silent": uid == "silent", "audio": tmp_path / "v1m" / uid / "audio.wav"}
        for uid in ("two", "none", "silent")
    ]
    clips = pandas.DataFrame(rows)
    features = {row["uid"]: embedder.embed([Clip(row["uid"], row["audio"], FRAMES)])[0].embeddings for row in rows}
    probe = LinearProbe(np.zeros(128), np.ones(128), np.eye(128)[:, :2] * [1, -1], np.zeros(2))
    scores = track_scores(probe, features, clips, config)
    assert list(scores) == ["two", "silent"] and np.array_equal(scores["silent"], probe(features["silent"]))
    assert track_scores(probe, features, clips[1:], config) == {}
    of_tracks = embedder.embed([Clip("", path, FRAMES) for path in track_paths(folder)])
    alone = np.maximum(*(probe(result.embeddings[1:2]) for result in of_tracks))
    expected = [*probe(features["two"][:1]), *alone, *probe(features["two"][2:])]
    assert scores["two"] == pytest.approx(np.array(expected), abs=1e-4)
    assert track_scores(None, features, clips, config) == {}


def test_large_splits_are_sampled():
    clips = pandas.DataFrame({"uid": range(3 * MAX_CLIPS), "split": "train", "labeled": 1})
    assert len(_drawn(clips, "train", 0)) == MAX_CLIPS and _drawn(clips, "train", 0)["uid"].is_monotonic_increasing
    assert _drawn(clips, "val", 0).empty
