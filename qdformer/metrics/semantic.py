"""Mean IoU over classes in the two conventions that papers on AVSBench-Semantic report.

*Dataset-level*: the intersections and unions of a class are summed over all frames and divided once; the mean is over
the classes with a nonzero union. *Per frame* (AVSS, Zhou et al., 2023): the IoU of a class is computed in every frame
and averaged over the frames in which the class has a union, then over all classes, where a class that never occurs
counts 0. In this convention a few false-positive pixels in a frame cost as much as a missed object. Both include the
background as a class.

Shapes: F frames of one clip, H W pixels, K classes (background first), R resamples, N draws in each.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike

from qdformer.metrics.avsbench import BETA_SQUARED
from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator, MetricError, check_same_shape
from qdformer.utils.constants import IGNORE_INDEX


@dataclass(frozen=True)
class ClassMeans:
    """Mean IoU (and F-score) over classes, and the values of each class, NaN for a class that never occurs."""

    miou: float
    fscore: float | None
    """F-score of AVSS; the dataset-level convention does not define one."""
    iou_K: torch.Tensor
    """float64 [num_classes]."""
    fscore_K: torch.Tensor | None


def per_frame(pred: ArrayLike | torch.Tensor, target: ArrayLike | torch.Tensor, num_classes: int) -> ClassMeans:
    """Per-frame mIoU and F-score of AVSS, as its `calc_color_miou_fscore`, from class ids [N, H, W].

    Class 0 is the background; a class that never occurs counts 0 in both means. Pixels with target 255 are ignored.
    Both arguments are tensors or NumPy arrays. Raises `MetricError` if the shapes differ or an id is out of range.
    """
    scores = _scores(pred, target, num_classes)
    means, by_class = scores.compute(scores.all_indices), scores.class_scores(scores.all_indices)
    return ClassMeans(
        float(means["miou_per_frame"][0]),
        float(means["fscore_per_frame"][0]),
        torch.from_numpy(by_class["iou_per_frame"][0]),
        torch.from_numpy(by_class["f_per_frame"][0]),
    )


def dataset_level(pred: ArrayLike | torch.Tensor, target: ArrayLike | torch.Tensor, num_classes: int) -> ClassMeans:
    """Dataset-level mIoU from class ids [N, H, W], over the classes that occur.

    Pixels with target 255 are ignored. Takes the same types and raises the same errors as `per_frame`.
    """
    scores = _scores(pred, target, num_classes)
    by_class = scores.class_scores(scores.all_indices)
    return ClassMeans(float(nanmean(by_class["iou"])[0]), None, torch.from_numpy(by_class["iou"][0]), None)


def _scores(pred: ArrayLike | torch.Tensor, target: ArrayLike | torch.Tensor, num_classes: int) -> SemanticScores:
    pred_NHW, target_NHW = check_same_shape("N H W", pred=pred, target=target)
    _check_ids("pred", pred_NHW, num_classes)
    _check_ids("target", target_NHW[target_NHW != IGNORE_INDEX], num_classes)
    scores = SemanticScores(num_classes)
    scores.update(pred_NHW, target_NHW)
    return scores


def _check_ids(name: str, ids: np.ndarray, num_classes: int) -> None:
    if ids.dtype.kind not in "biu":
        raise MetricError(f"{name} is {ids.dtype}; expected class ids (integers)")
    if ((ids < 0) | (ids >= num_classes)).any():
        raise MetricError(f"{name} contains ids {ids.min()} to {ids.max()}; expected 0 to {num_classes - 1}")


@dataclass(frozen=True)
class FrameConfusion:
    """Confusion matrix of each frame in pixels, truth in rows and prediction in columns: int64 [F, K, K]."""

    confusion_FKK: np.ndarray

    @property
    def intersection_FK(self) -> np.ndarray:
        """Pixels of the class in both prediction and truth."""
        return self.confusion_FKK.diagonal(axis1=1, axis2=2)

    @property
    def predicted_FK(self) -> np.ndarray:
        """Pixels of the class in the prediction."""
        return self.confusion_FKK.sum(axis=1)

    @property
    def truth_FK(self) -> np.ndarray:
        """Pixels of the class in the truth."""
        return self.confusion_FKK.sum(axis=2)

    @property
    def union_FK(self) -> np.ndarray:
        """Pixels of the class in prediction or truth."""
        return self.predicted_FK + self.truth_FK - self.intersection_FK


def frame_confusion(predicted_FHW: np.ndarray, truth_FHW: np.ndarray, classes: int) -> FrameConfusion:
    """Count the pixels of `classes` classes (ids 0..classes-1). Pixels with truth 255 are ignored.

    A frame without a sounding object has an all-background truth and is counted like any other.
    """
    frames = len(truth_FHW)
    pairs_FHW = truth_FHW.astype(np.int64) * classes + predicted_FHW
    pairs_FHW += np.arange(frames)[:, None, None] * classes**2
    counted = pairs_FHW[truth_FHW != IGNORE_INDEX]
    return FrameConfusion(np.bincount(counted, minlength=frames * classes**2).reshape(frames, classes, classes))


class SemanticScores(ClipAccumulator):
    """Both mean IoUs of a test set, over classes and for each class, accumulated clip by clip."""

    _COLUMNS = ("intersection", "predicted", "truth", "union", "iou", "f", "frames")
    _KEPT = (*ClipAccumulator._KEPT, "_confused")

    def __init__(self, classes: int):
        super().__init__(len(self._COLUMNS) * classes)
        self.classes = classes
        self._confused = array("q")  # (index, pair of classes, pixels): few of the K^2 pairs occur in a clip

    def update(self, predicted_FHW: np.ndarray, truth_FHW: np.ndarray, *, index: int | None = None) -> dict[str, float]:
        """Add the class ids of a clip and return its own `miou_dataset` and `miou_per_frame`.

        Both are means over the classes that occur in its truth or prediction. `index` is its position in the test set,
        by default after all others.
        """
        areas = frame_confusion(predicted_FHW, truth_FHW, self.classes)
        intersection_FK, predicted_FK, truth_FK = areas.intersection_FK, areas.predicted_FK, areas.truth_FK
        union_FK = predicted_FK + truth_FK - intersection_FK
        iou_FK = intersection_FK / np.maximum(union_FK, 1)
        # (1 + b) P R / (b P + R), simplified; 0 if the class is only in the truth or only in the prediction.
        f_FK = (1 + BETA_SQUARED) * intersection_FK / np.maximum(BETA_SQUARED * truth_FK + predicted_FK, 1e-20)
        columns = (intersection_FK, predicted_FK, truth_FK, union_FK, iou_FK, f_FK, union_FK > 0)
        sums = np.stack([values_FK.sum(axis=0) for values_FK in columns]).astype(np.float64)
        confusion = areas.confusion_FKK.sum(axis=0).ravel()
        pairs = np.flatnonzero(confusion)
        index = self._add(sums.ravel(), index)
        self._confused.extend(np.stack([np.full(len(pairs), index), pairs, confusion[pairs]], axis=1).ravel())
        own = self._ratios(dict(zip(self._COLUMNS, sums[:, None], strict=True)))
        return {"miou_dataset": nanmean(own["iou"])[0], "miou_per_frame": nanmean(own["iou_per_frame"])[0]}

    def confusion(self) -> np.ndarray:
        """Confusion matrix over all clips in pixels, truth in rows and prediction in columns: int64 [K, K]."""
        entries = np.array(self._confused).reshape(-1, 3)
        _, first = np.unique(entries[:, :2], axis=0, return_index=True)  # a clip counts once
        total = np.zeros(self.classes**2, np.int64)
        np.add.at(total, entries[first, 1], entries[first, 2])
        return total.reshape(self.classes, self.classes)

    def subset(self, indices: np.ndarray) -> Self:
        """A new accumulator that holds only the clips at `indices`."""
        part, entries = super().subset(indices), np.array(self._confused).reshape(-1, 3)
        part._confused = array("q", entries[np.isin(entries[:, 0], part._indices)].tobytes())
        return part

    def class_scores(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """Values of each class, float64 [R, K].

        The pixel counts `intersection`, `predicted`, `truth` and `union`, the number of `frames` with a union, and
        `iou`, `iou_per_frame` and `f_per_frame`, NaN for a class that never occurs.
        """
        clips = self._sums()
        counts_RN = resample_counts(indices_RN, len(clips))
        sums = (counts_RN @ clips.reshape(len(clips), -1)).reshape(-1, len(self._COLUMNS), self.classes)
        return self._ratios(dict(zip(self._COLUMNS, sums.transpose(1, 0, 2), strict=True)))

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`miou_dataset`, `miou_per_frame` and `fscore_per_frame` (of AVSS) of each resample: float64 [R].

        The per-frame means are over all K classes. A class that occurs in the set but in no clip of a resample is
        excluded from the means of that resample instead of counting 0.
        """
        present_K = self._sums()[:, self._COLUMNS.index("frames")].sum(axis=0) > 0
        share = present_K.mean()
        scores = self.class_scores(indices_RN)
        return {
            "miou_dataset": nanmean(scores["iou"]),
            "miou_per_frame": nanmean(scores["iou_per_frame"]) * share,
            "fscore_per_frame": nanmean(scores["f_per_frame"]) * share,
        }

    def _sums(self) -> np.ndarray:
        """The columns of every clip: float64 [clips, columns, K]."""
        return self._records().reshape(-1, len(self._COLUMNS), self.classes)

    @staticmethod
    def _ratios(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Convert the counts and sums [R, K] of several clips to the values of `class_scores`."""
        frames_RK = np.where(sums["frames"] > 0, sums["frames"], np.nan)
        iou_RK = sums["intersection"] / np.where(sums["union"] > 0, sums["union"], np.nan)
        counts = {key: values_RK for key, values_RK in sums.items() if key not in ("iou", "f")}
        return counts | {
            "iou": iou_RK,
            "iou_per_frame": sums["iou"] / frames_RK,
            "f_per_frame": sums["f"] / frames_RK,
        }


def nanmean(values_RK: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN, as `numpy.nanmean`, but without its warning for rows of NaN alone."""
    defined = ~np.isnan(values_RK)
    counts = defined.sum(axis=-1)
    return np.where(defined, values_RK, 0).sum(axis=-1) / np.where(counts > 0, counts, np.nan)
