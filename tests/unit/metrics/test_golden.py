"""The metrics compared with the output of the published reference code on the same inputs."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from qdformer.metrics import AVSBenchScores, DavisScores, SemanticScores, avsbench, davis, semantic
from qdformer.metrics.davis import contour_f, region_j
from qdformer.metrics.semantic import frame_confusion
from tests.helpers import GOLDEN


def golden(name):
    return np.load(GOLDEN / f"{name}.npz"), json.loads((GOLDEN / f"{name}.json").read_text())


def all_clips(clips):
    return np.arange(clips)[None]


@pytest.mark.parametrize("videos", [1, 2, 4, 8])
def test_avsbench_at_every_batch_size(videos):
    inputs, expected = golden("avsbench_binary")
    expected = expected[str(videos)]
    soft, truth = torch.sigmoid(torch.from_numpy(inputs["logits"])).numpy(), inputs["target"] > 0
    scores = AVSBenchScores(batch_videos=videos)
    for clip in range(len(soft)):
        scores.update(soft[clip], truth[clip])
    whole = scores.compute(all_clips(len(soft)))
    assert whole["avsbench_j"][0] == pytest.approx(expected["J"], rel=1e-6)
    assert whole["avsbench_f"][0] == pytest.approx(expected["F"], rel=1e-6)
    batches = scores.compute(np.arange(len(soft)).reshape(-1, videos))
    assert batches["avsbench_j"] == pytest.approx(expected["per_batch_J"], rel=1e-6)
    assert batches["avsbench_f"] == pytest.approx(expected["per_batch_F"], rel=1e-6)


@pytest.mark.parametrize("frames", [1, 5, 20])
def test_semantic(frames):
    inputs, expected = golden("avss_semantic")
    predicted, truth, classes = inputs["pred"], inputs["target"], expected["num_classes"]
    scores = SemanticScores(classes)
    for first in range(0, len(truth), frames):
        scores.update(predicted[first : first + frames], truth[first : first + frames])
    whole, by_class = (compute(all_clips(20 // frames)) for compute in (scores.compute, scores.class_scores))
    assert whole["miou_dataset"][0] == pytest.approx(expected["miou_dataset_present"], rel=1e-12)
    assert whole["miou_per_frame"][0] == pytest.approx(expected["miou_per_frame"], rel=1e-6)
    assert whole["fscore_per_frame"][0] == pytest.approx(expected["fscore_per_frame"], rel=1e-6)
    assert by_class["intersection"][0].tolist() == expected["dataset_intersection"]
    assert by_class["union"][0].tolist() == expected["dataset_union"]
    assert by_class["frames"][0].tolist() == expected["per_class_count"]
    sums = by_class["iou_per_frame"][0] * by_class["frames"][0]
    assert sums == pytest.approx(expected["per_class_iou_sum"], rel=1e-6)


@pytest.mark.parametrize("videos", [1, 2, 4, 8])
def test_avsbench_functions(videos):
    inputs, expected = golden("avsbench_binary")
    expected = expected[str(videos)]
    logits, target = torch.from_numpy(inputs["logits"]), torch.from_numpy(inputs["target"])
    per_frame = avsbench.mask_iou(logits.flatten(0, 1), target.flatten(0, 1))
    assert per_frame.shape == (40,)
    assert per_frame.mean().item() == pytest.approx(expected["J"], abs=1e-6)
    assert per_frame.view(-1, 5 * videos).mean(1).tolist() == pytest.approx(expected["per_batch_J"], abs=1e-6)
    whole = avsbench.f_measure(logits, target, videos)
    assert whole.shape == () and whole.item() == pytest.approx(expected["F"], abs=1e-6)
    batches = zip(logits.split(videos), target.split(videos), strict=True)
    alone = [avsbench.f_measure(*batch, batch_videos=videos).item() for batch in batches]
    assert alone == pytest.approx(expected["per_batch_F"], abs=1e-6)


def test_semantic_functions():
    inputs, expected = golden("avss_semantic")
    pred, target, classes = torch.from_numpy(inputs["pred"]), torch.from_numpy(inputs["target"]), 12
    frame = semantic.per_frame(pred, target, classes)
    assert frame.miou == pytest.approx(expected["miou_per_frame"], abs=1e-6)
    assert frame.fscore == pytest.approx(expected["fscore_per_frame"], abs=1e-6)
    sums = (frame.iou_K * torch.tensor(expected["per_class_count"])).tolist()
    assert sums == pytest.approx(expected["per_class_iou_sum"], abs=1e-4)
    assert frame.iou_K.nan_to_num().mean().item() == pytest.approx(frame.miou)
    assert frame.fscore_K.nan_to_num().mean().item() == pytest.approx(frame.fscore)
    whole = semantic.dataset_level(pred, target, classes)
    assert whole.miou == pytest.approx(expected["miou_dataset_present"], abs=1e-6)
    assert whole.fscore is None and whole.fscore_K is None
    ratios = np.array(expected["dataset_intersection"]) / np.array(expected["dataset_union"])
    assert whole.iou_K.tolist() == pytest.approx(ratios.tolist(), nan_ok=True)


def test_davis_functions():
    inputs, expected = golden("davis")
    masks = torch.from_numpy(inputs["annotation"]), torch.from_numpy(inputs["segmentation"])
    assert davis.region_similarity(*masks).tolist() == pytest.approx(expected["J"], abs=1e-6)
    assert davis.boundary_f(*masks).tolist() == pytest.approx(expected["F"], abs=1e-6)
    assert davis.boundary_f(*(mask.to(torch.uint8) for mask in masks)).tolist() == pytest.approx(expected["F"])


def test_frame_confusion_counts_each_frame():
    inputs, _ = golden("avss_semantic")
    predicted, truth = inputs["pred"], inputs["target"]
    areas = frame_confusion(predicted, truth, 12)
    for frame in range(len(truth)):
        for class_id in range(12):
            one, other = predicted[frame] == class_id, truth[frame] == class_id
            assert areas.intersection_FK[frame, class_id] == (one & other).sum()
            assert areas.union_FK[frame, class_id] == (one | other).sum()


def test_davis():
    inputs, expected = golden("davis")
    truth, mask = inputs["annotation"], inputs["segmentation"]
    assert region_j(mask, truth) == pytest.approx(expected["J"], rel=1e-12)
    assert contour_f(mask, truth) == pytest.approx(expected["F"], rel=1e-12)
    scores = DavisScores()
    for first in range(0, 24, 4):
        scores.update(mask[first : first + 4], truth[first : first + 4])
    whole = scores.compute(all_clips(6))
    assert whole["davis_j"][0] == pytest.approx(np.mean(expected["J"]))
    assert whole["davis_f"][0] == pytest.approx(np.mean(expected["F"]))
    assert whole["davis_jf"][0] == pytest.approx((np.mean(expected["J"]) + np.mean(expected["F"])) / 2)
