"""What each score does at its edges, against plain re-statements of its definition."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from qdformer.metrics import (
    AVSBenchScores,
    DavisScores,
    SemanticScores,
    boundary_f,
    f_curves,
    interval,
    jaccard,
    region_j,
    resamples,
)
from qdformer.metrics.avsbench import THRESHOLDS
from qdformer.metrics.davis import dilate

RANDOM = np.random.default_rng(0)
EMPTY = np.zeros((1, 20, 20), bool)
STRAY = EMPTY.copy()
STRAY[0, 3, 3] = True


def test_f_curve_is_that_of_255_passes_even_on_the_thresholds():
    around = np.concatenate([THRESHOLDS, np.nextafter(THRESHOLDS, 0), np.nextafter(THRESHOLDS, 2)])
    soft = np.resize(RANDOM.permutation(around.clip(0, 1)), (3, 16, 18)).astype(np.float32)
    truth = RANDOM.random(soft.shape) < 0.2
    curves, present = f_curves(soft, truth)
    for frame in range(3):
        for index, threshold in enumerate(THRESHOLDS):
            mask = soft[frame] >= threshold
            hits = (mask & truth[frame]).sum()
            precision, recall = hits / max(mask.sum(), 1), hits / truth[frame].sum()
            expected = 1.3 * precision * recall / (0.3 * precision + recall) if hits else 0
            assert curves[frame, index] == pytest.approx(expected, rel=1e-9)
    assert present.all()


def test_empty_truth_in_each_protocol():
    assert jaccard(EMPTY, EMPTY) == pytest.approx([1], abs=1e-6)
    assert jaccard(STRAY, EMPTY) == pytest.approx([399 / 400], abs=1e-6)
    assert region_j(EMPTY, EMPTY) == [1] and region_j(STRAY, EMPTY) == [0]
    assert boundary_f(EMPTY, EMPTY) == [1] and boundary_f(STRAY, EMPTY) == [0]
    assert not f_curves(STRAY.astype(np.float32), EMPTY)[1].any()
    scores = AVSBenchScores()
    assert np.isnan(scores.update(EMPTY.astype(np.float32), EMPTY)["avsbench_f"])
    assert scores.compute(np.array([[0]]))["avsbench_f"] == [0]


def test_missed_object_scores_zero_everywhere():
    assert jaccard(EMPTY, STRAY) == region_j(EMPTY, STRAY) == boundary_f(EMPTY, STRAY) == [0]


def test_ignored_pixels_change_nothing():
    truth, mask = RANDOM.random((4, 24, 24)) < 0.3, RANDOM.random((4, 24, 24)) < 0.3
    ignored = np.zeros(truth.shape, bool)
    ignored[:, 16:] = True
    noise = truth.copy()
    noise[:, 16:] ^= True
    for score in (jaccard, region_j, boundary_f, lambda *masks: f_curves(masks[0].astype(np.float32), *masks[1:])[0]):
        assert np.array_equal(score(mask, truth, ignored), score(mask, noise, ignored))
    assert jaccard(mask, truth, ignored) == pytest.approx(jaccard(mask[:, :16], truth[:, :16]))
    assert region_j(mask, truth, ignored) == pytest.approx(region_j(mask[:, :16], truth[:, :16]))
    labels = np.where(ignored, 255, truth)
    own = SemanticScores(2).update(mask, labels)
    assert own == SemanticScores(2).update(mask[:, :16], truth[:, :16])


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 8, 30])
def test_dilation_is_by_a_disk(radius):
    points = RANDOM.random((2, 25, 31)) < 0.02
    points[:, 0, 0] = True
    for frame, grown in zip(points, dilate(points, radius), strict=True):
        assert np.array_equal(grown, ndimage.distance_transform_edt(~frame) <= radius)


def test_avsbench_last_batch_may_be_smaller():
    soft = RANDOM.random((6, 3, 12, 12)).astype(np.float32)
    truth = RANDOM.random(soft.shape) < 0.3
    scores = AVSBenchScores(batch_videos=4)
    for clip in range(6):
        scores.update(soft[clip], truth[clip])
    first = scores.compute(np.array([[0, 1, 2, 3]]))["avsbench_f"][0]
    last = scores.compute(np.array([[4, 5]]))["avsbench_f"][0]
    assert scores.compute(np.arange(6)[None])["avsbench_f"][0] == pytest.approx((first + last) / 2)


def test_stray_pixels_cost_a_class_per_frame_but_not_over_the_set():
    truth = np.zeros((10, 20, 20), np.int64)
    truth[0, :10] = 1
    clean, stray = truth.copy(), truth.copy()
    stray[1:, 0, 0] = 1
    assert SemanticScores(2).update(clean, truth) == {"miou_dataset": 1, "miou_per_frame": 1}
    spoilt = SemanticScores(2).update(stray, truth)
    assert spoilt["miou_dataset"] > 0.95
    assert spoilt["miou_per_frame"] < 0.56


def test_absent_class_is_left_out_over_the_set_and_zero_per_frame():
    truth = np.zeros((2, 8, 8), np.int64)
    truth[:, 4:] = 1
    scores = SemanticScores(4)
    scores.update(truth, truth)
    whole = scores.compute(np.array([[0]]))
    assert whole["miou_dataset"] == [1] and whole["miou_per_frame"] == [0.5]
    assert np.isnan(scores.class_scores(np.array([[0]]))["iou"][0, 2:]).all()


def test_a_resample_is_the_same_as_measuring_the_drawn_clips():
    soft = RANDOM.random((5, 2, 16, 16)).astype(np.float32)
    truth = RANDOM.integers(0, 3, soft.shape)
    predicted = RANDOM.integers(0, 3, soft.shape)
    draws = resamples(5, 20, seed=3)
    assert np.array_equal(draws, resamples(5, 20, seed=3))

    def measured(clips):
        accumulators = AVSBenchScores(), DavisScores(), SemanticScores(3)
        for clip in clips:
            accumulators[0].update(soft[clip], truth[clip] > 0)
            accumulators[1].update(predicted[clip] > 0, truth[clip] > 0)
            accumulators[2].update(predicted[clip], truth[clip])
        return accumulators

    everything, whole = measured(range(5)), np.arange(5)[None]
    for kind in range(3):
        resampled = everything[kind].compute(draws)
        for row, drawn in enumerate(draws):
            alone = measured(drawn)[kind].compute(whole)
            assert {key: values[row] for key, values in resampled.items()} == pytest.approx(
                {key: value[0] for key, value in alone.items()}
            )


def test_interval_covers_the_middle_and_leaves_undefined_draws_out():
    low, high = interval(np.append(np.linspace(0, 1, 1001), np.nan))
    assert (low, high) == pytest.approx((0.025, 0.975))
    assert np.isnan(interval(np.array([np.nan]))).all()
