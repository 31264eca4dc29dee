"""Edge cases of each metric, compared with direct implementations of its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from qdformer.metrics import (
    AVSBenchScores,
    DavisScores,
    MetricError,
    PredictedArea,
    SemanticScores,
    avsbench,
    bootstrap_indices,
    confidence_interval,
    davis,
    g_miou,
    semantic,
)
from qdformer.metrics.avsbench import THRESHOLDS, f_curves, jaccard
from qdformer.metrics.davis import contour_f, dilate, region_j

RANDOM = np.random.default_rng(0)
EMPTY = np.zeros((1, 20, 20), bool)
STRAY = EMPTY.copy()
STRAY[0, 3, 3] = True


def test_f_curve_equals_255_separate_passes_even_on_the_thresholds():
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
    assert contour_f(EMPTY, EMPTY) == [1] and contour_f(STRAY, EMPTY) == [0]
    assert not f_curves(STRAY.astype(np.float32), EMPTY)[1].any()
    scores = AVSBenchScores()
    assert np.isnan(scores.update(EMPTY.astype(np.float32), EMPTY)["avsbench_f"])
    assert scores.compute(np.array([[0]]))["avsbench_f"] == [0]


def test_missed_object_scores_zero_in_all_protocols():
    assert jaccard(EMPTY, STRAY) == region_j(EMPTY, STRAY) == contour_f(EMPTY, STRAY) == [0]


def test_ignored_pixels_change_nothing():
    truth, mask = RANDOM.random((4, 24, 24)) < 0.3, RANDOM.random((4, 24, 24)) < 0.3
    ignored = np.zeros(truth.shape, bool)
    ignored[:, 16:] = True
    noise = truth.copy()
    noise[:, 16:] ^= True
    for score in (jaccard, region_j, contour_f, lambda *masks: f_curves(masks[0].astype(np.float32), *masks[1:])[0]):
        assert np.array_equal(score(mask, truth, ignored), score(mask, noise, ignored))
    assert jaccard(mask, truth, ignored) == pytest.approx(jaccard(mask[:, :16], truth[:, :16]))
    assert region_j(mask, truth, ignored) == pytest.approx(region_j(mask[:, :16], truth[:, :16]))
    labels = np.where(ignored, 255, truth)
    own = SemanticScores(2).update(mask, labels)
    assert own == SemanticScores(2).update(mask[:, :16], truth[:, :16])


@pytest.mark.parametrize("radius", [0, 1, 2, 3, 8, 30])
def test_dilation_uses_a_disk(radius):
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


def test_false_positive_pixels_cost_much_per_frame_and_little_over_the_set():
    truth = np.zeros((10, 20, 20), np.int64)
    truth[0, :10] = 1
    clean, stray = truth.copy(), truth.copy()
    stray[1:, 0, 0] = 1
    assert SemanticScores(2).update(clean, truth) == {"miou_dataset": 1, "miou_per_frame": 1}
    spoilt = SemanticScores(2).update(stray, truth)
    assert spoilt["miou_dataset"] > 0.95
    assert spoilt["miou_per_frame"] < 0.56


def test_absent_class_is_excluded_over_the_set_and_zero_per_frame():
    truth = np.zeros((2, 8, 8), np.int64)
    truth[:, 4:] = 1
    scores = SemanticScores(4)
    scores.update(truth, truth)
    whole = scores.compute(np.array([[0]]))
    assert whole["miou_dataset"] == [1] and whole["miou_per_frame"] == [0.5]
    assert np.isnan(scores.class_scores(np.array([[0]]))["iou"][0, 2:]).all()


def test_resampling_equals_measuring_the_drawn_clips():
    soft = RANDOM.random((5, 2, 16, 16)).astype(np.float32)
    truth = RANDOM.integers(0, 3, soft.shape)
    predicted = RANDOM.integers(0, 3, soft.shape)
    (draws,) = bootstrap_indices(5, 20, seed=3)
    assert draws.shape == (20, 5) and np.array_equal(draws, *bootstrap_indices(5, 20, seed=3))

    def measured(clips):
        accumulators = AVSBenchScores(), DavisScores(), SemanticScores(3)
        for clip in clips:
            accumulators[0].update(soft[clip], truth[clip] > 0)
            accumulators[1].update(predicted[clip] > 0, truth[clip] > 0)
            accumulators[2].update(predicted[clip], truth[clip])
        return accumulators

    accumulators, whole = measured(range(5)), np.arange(5)[None]
    for kind in range(3):
        resampled = accumulators[kind].compute(draws)
        for row, drawn in enumerate(draws):
            alone = measured(drawn)[kind].compute(whole)
            assert {key: values[row] for key, values in resampled.items()} == pytest.approx(
                {key: value[0] for key, value in alone.items()}
            )


def test_bootstrap_indices_come_in_chunks():
    parts = list(bootstrap_indices(3000, 50, seed=3))
    assert len(parts) > 1 and max(part.nbytes for part in parts) < 2**20
    whole = np.random.default_rng(3).integers(0, 3000, size=(50, 3000))
    assert np.array_equal(np.concatenate(parts), whole)


def test_confidence_interval_ignores_undefined_resamples():
    low, high = confidence_interval(np.append(np.linspace(0, 1, 1001), np.nan))
    assert (low, high) == pytest.approx((0.025, 0.975))
    assert np.isnan(confidence_interval(np.array([np.nan]))).all()


def measured_clips(kinds, soft, truth, indices):
    for clip in indices:
        kinds[0].update(soft[clip], truth[clip] > 0, index=clip)
        kinds[1].update(soft[clip] > 0.5, truth[clip] > 0, index=clip)
        kinds[2].update((soft[clip] * 3).astype(int), truth[clip], index=clip)
        kinds[3].update(soft[clip] > 0.5, index=clip)
    return kinds


@pytest.mark.parametrize("ranks", [2, 3])
def test_merged_parts_equal_a_single_pass(ranks):
    soft = RANDOM.random((7, 2, 16, 16)).astype(np.float32)
    truth = RANDOM.integers(0, 3, soft.shape)

    def accumulators():
        return AVSBenchScores(2), DavisScores(), SemanticScores(3), PredictedArea()

    whole = measured_clips(accumulators(), soft, truth, range(7))
    # Clip 0 is in every part, as with samplers that pad the last batch; the parts are merged in another order.
    parts = [measured_clips(accumulators(), soft, truth, [*range(rank, 7, ranks), 0]) for rank in range(ranks)]
    for one, first, *others in zip(whole, *reversed(parts), strict=True):
        for other in others:
            first.merge(other)
        assert len(first) == 7
        assert {key: value.tolist() for key, value in first.compute(first.all_indices).items()} == {
            key: value.tolist() for key, value in one.compute(one.all_indices).items()
        }
    assert (parts[-1][2].confusion() == whole[2].confusion()).all()


def test_a_subset_equals_measuring_its_clips_alone():
    soft = RANDOM.random((5, 2, 16, 16)).astype(np.float32)
    truth = RANDOM.integers(0, 3, soft.shape)
    whole = measured_clips(
        (AVSBenchScores(2), DavisScores(), SemanticScores(3), PredictedArea()), soft, truth, range(5)
    )
    alone = measured_clips(
        (AVSBenchScores(2), DavisScores(), SemanticScores(3), PredictedArea()), soft, truth, [1, 2, 4]
    )
    for all_clips, few in zip(whole, alone, strict=True):
        part = all_clips.subset([1, 2, 4])
        assert part.compute(part.all_indices) == few.compute(few.all_indices)
        assert len(all_clips) == 5


def test_confusion_counts_every_labeled_pixel_once():
    truth, predicted = RANDOM.integers(0, 3, (4, 2, 16, 16)), RANDOM.integers(0, 3, (4, 2, 16, 16))
    truth[0, 0, 0] = 255
    scores = SemanticScores(3)
    for clip in range(4):
        scores.update(predicted[clip], truth[clip])
    expected = [[((truth == one) & (predicted == other)).sum() for other in range(3)] for one in range(3)]
    assert scores.confusion().tolist() == expected


def test_predicted_area_is_a_fraction_of_the_frames():
    mask = np.zeros((4, 20, 20), bool)
    mask[0], mask[1, :2], mask[2, 0, :4] = True, True, True  # 100 %, 10 % and 1 % of a frame
    scores = PredictedArea()
    assert scores.update(mask) == {"predicted_area": pytest.approx((1 + 0.1 + 0.01) / 4), "predicted_frames": 0.5}
    ignored = np.zeros(mask.shape, bool)
    ignored[:, :2] = True
    assert scores.update(mask, ignored) == {"predicted_area": 0.25, "predicted_frames": 0.25}
    assert scores.compute(scores.all_indices)["predicted_frames"] == [0.375]


def test_g_miou():
    assert g_miou(1.0, 0.0) == 1 and g_miou(0.0, 0.0) == g_miou(1.0, 1.0) == g_miou(0.0, 1.0) == 0
    assert g_miou(0.862, 0.862) == pytest.approx(0.2379, abs=1e-4)
    assert g_miou(np.array([0.5, 0.8]), np.array([0.5, 0.2])) == pytest.approx([0.5, 0.8])


def test_j_over_the_frames_that_have_an_object():
    truth = np.zeros((2, 10, 10), bool)
    truth[0, :5] = True
    scores = AVSBenchScores()
    scores.update(truth.astype(np.float32), truth)
    scores.update(np.ones((1, 10, 10), np.float32), truth[1:])
    assert scores.compute(scores.all_indices)["avsbench_j_sounding"] == pytest.approx([1])
    assert scores.compute(scores.all_indices)["avsbench_j"] == pytest.approx([2 / 3])
    assert np.isnan(scores.compute(np.array([[1]]))["avsbench_j_sounding"]).all()


ONES = torch.ones(2, 4, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: avsbench.mask_iou(ONES.float(), ONES[:1]),
            r"logits \[2, 4, 6\], target \[1, 4, 6\]: expected \[N, H, W\]",
        ),
        (lambda: avsbench.mask_iou(ONES.float() * torch.nan, ONES), "logits contains NaN; expected numbers"),
        (lambda: avsbench.mask_iou(ONES.float(), ONES * 255), "target contains 255 to 255; expected a mask of 0 and 1"),
        (lambda: avsbench.f_measure(ONES.float(), ONES, 4), r"expected \[V, T, H, W\]"),
        (lambda: avsbench.f_measure(ONES[None].float(), ONES[None], 0), "batch_videos is 0; expected at least 1"),
        (lambda: semantic.per_frame(ONES[0], ONES[0], 3), r"pred \[4, 6\], target \[4, 6\]: expected \[N, H, W\]"),
        (lambda: semantic.per_frame(ONES.float(), ONES, 3), "pred is float32; expected class ids"),
        (lambda: semantic.per_frame(ONES * 255, ONES, 3), "pred contains ids 255 to 255; expected 0 to 2"),
        (lambda: semantic.dataset_level(ONES, ONES * 3, 3), "target contains ids 3 to 3; expected 0 to 2"),
        (lambda: davis.region_similarity(ONES, ONES[:, :2]), r"annotation \[2, 4, 6\], segmentation \[2, 2, 6\]"),
        (lambda: davis.boundary_f(ONES, ONES * 2), "segmentation contains 2 to 2"),
        (lambda: davis.boundary_f(ONES[:0], ONES[:0]), "without a dimension of size 0"),
        (lambda: davis.region_similarity(ONES.numpy(), "mask"), "segmentation is of type <U4; expected a tensor or"),
        (lambda: avsbench.mask_iou(None, ONES), "logits is of type object; expected a tensor or an array of numbers"),
        (lambda: avsbench.mask_iou([[1.0], [1.0, 2.0]], ONES), "logits is not an array"),
    ],
)
def test_inputs_that_cannot_be_compared_raise(call, message):
    with pytest.raises(MetricError, match=message):
        call()


def test_arrays_and_lists_score_as_tensors_do():
    soft, truth = RANDOM.normal(size=(2, 3, 8, 9)).astype(np.float32), RANDOM.random((2, 3, 8, 9)) < 0.3
    masks, ids = soft[0] > 0, RANDOM.integers(0, 3, (2, 8, 9))
    calls = [
        (davis.region_similarity, (masks, truth[0])),
        (davis.boundary_f, (masks, truth[0])),
        (avsbench.mask_iou, (soft[0], truth[0])),
        (lambda *arguments: avsbench.f_measure(*arguments, batch_videos=2), (soft, truth)),
        (lambda *arguments: semantic.per_frame(*arguments, num_classes=3).iou_K, (ids, ids[::-1])),
        (lambda *arguments: semantic.dataset_level(*arguments, num_classes=3).iou_K, (ids, ids[::-1])),
    ]
    for call, arrays in calls:
        expected = call(*(torch.from_numpy(array.copy()) for array in arrays))
        for given in (arrays, [array.tolist() for array in arrays], [arrays[0], torch.from_numpy(arrays[1].copy())]):
            assert torch.equal(call(*given), expected)
    halves = torch.from_numpy(soft[0]).bfloat16(), torch.from_numpy(truth[0])
    assert torch.equal(avsbench.mask_iou(*halves), avsbench.mask_iou(halves[0].float(), halves[1]))
