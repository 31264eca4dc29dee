"""Mean IoU over classes, in the two conventions that papers on AVSBench-Semantic report.

*Dataset-level*: a class's intersections and unions are added up over all frames, divided once, and
averaged over the classes that have a union. *Per frame* (AVSS, Zhou et al., 2023): the ratio is taken
in every frame, averaged over the frames in which the class has a union, then over all classes, a class
that never occurs counting 0; there a few stray pixels in a frame cost as much as a missed object.
Background is one of the classes in both.

Shapes: F frames of one clip, H W pixels, K classes (background first), R resamples, N draws.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from qdformer.metrics.avsbench import BETA_SQUARED
from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator, MetricError, check_same_shape
from qdformer.utils.constants import IGNORE_INDEX


@dataclass(frozen=True)
class ClassMeans:
    """A mean IoU (and F-score) over classes, and the classes' own, NaN where a class never occurs."""

    miou: float
    fscore: float | None
    """AVSS's F-score; the dataset-level convention defines none."""
    iou_K: torch.Tensor
    """float64 [num_classes]."""
    fscore_K: torch.Tensor | None


def per_frame(pred: torch.Tensor, target: torch.Tensor, num_classes: int) -> ClassMeans:
    """AVSS's per-frame mIoU and F-score, as its `calc_color_miou_fscore`, of class ids [N, H, W].

    Class 0 is the background; a class that never occurs counts 0 in both means. Target 255 is ignored.
    Raises `MetricError` for shapes that differ and for ids that are no classes.
    """
    scores = _scores(pred, target, num_classes)
    means, by_class = scores.compute(scores.all_indices), scores.class_scores(scores.all_indices)
    return ClassMeans(
        float(means["miou_per_frame"][0]),
        float(means["fscore_per_frame"][0]),
        torch.from_numpy(by_class["iou_per_frame"][0]),
        torch.from_numpy(by_class["f_per_frame"][0]),
    )


def dataset_level(pred: torch.Tensor, target: torch.Tensor, num_classes: int) -> ClassMeans:
    """Dataset-level mIoU of class ids [N, H, W]: over all frames, and over the classes that occur.

    Target 255 is ignored. Raises `MetricError` as `per_frame` does.
    """
    scores = _scores(pred, target, num_classes)
    by_class = scores.class_scores(scores.all_indices)
    return ClassMeans(float(nanmean(by_class["iou"])[0]), None, torch.from_numpy(by_class["iou"][0]), None)


def _scores(pred: torch.Tensor, target: torch.Tensor, num_classes: int) -> SemanticScores:
    pred_NHW, target_NHW = check_same_shape("N H W", pred=pred, target=target)
    for name, ids, allowed in (("pred", pred_NHW, ()), ("target", target_NHW, (IGNORE_INDEX,))):
        if ids.dtype.kind not in "biu":
            raise MetricError(f"{name} is {ids.dtype}; expected class ids, whole numbers")
        if ((ids < 0) | (ids >= num_classes) & ~np.isin(ids, allowed)).any():
            raise MetricError(f"{name} holds ids {ids.min()} to {ids.max()}; expected 0 to {num_classes - 1}")
    scores = SemanticScores(num_classes)
    scores.update(pred_NHW, target_NHW)
    return scores


@dataclass(frozen=True)
class FrameConfusion:
    """How many pixels of every frame have which class in truth (rows) and prediction (columns): int64 [F, K, K]."""

    confusion_FKK: np.ndarray

    @property
    def intersection_FK(self) -> np.ndarray:
        """Pixels that have the class in both."""
        return self.confusion_FKK.diagonal(axis1=1, axis2=2)

    @property
    def predicted_FK(self) -> np.ndarray:
        """Pixels that have the class in the prediction."""
        return self.confusion_FKK.sum(axis=1)

    @property
    def truth_FK(self) -> np.ndarray:
        """Pixels that have the class in the truth."""
        return self.confusion_FKK.sum(axis=2)

    @property
    def union_FK(self) -> np.ndarray:
        """Pixels that have the class in prediction or truth."""
        return self.predicted_FK + self.truth_FK - self.intersection_FK


def frame_confusion(predicted_FHW: np.ndarray, truth_FHW: np.ndarray, classes: int) -> FrameConfusion:
    """Count the pixels of `classes` classes (ids 0..classes-1); truth 255 is ignored, prediction included.

    A frame in which nothing sounds is one whose truth is all background: it counts like any other.
    """
    frames = len(truth_FHW)
    pairs_FHW = truth_FHW.astype(np.int64) * classes + predicted_FHW
    pairs_FHW += np.arange(frames)[:, None, None] * classes**2
    counted = pairs_FHW[truth_FHW != IGNORE_INDEX]
    return FrameConfusion(np.bincount(counted, minlength=frames * classes**2).reshape(frames, classes, classes))


class SemanticScores(ClipAccumulator):
    """Both mean IoUs of a test set, whole or by class, clip by clip."""

    _COLUMNS = ("intersection", "predicted", "truth", "union", "iou", "f", "frames")
    _KEPT = (*ClipAccumulator._KEPT, "_confused")

    def __init__(self, classes: int):
        super().__init__(len(self._COLUMNS) * classes)
        self.classes = classes
        self._confused = array("q")  # index, pair of classes, pixels: a clip confuses few of the K^2 pairs

    def update(self, predicted_FHW: np.ndarray, truth_FHW: np.ndarray, *, index: int | None = None) -> dict[str, float]:
        """Add the clip of class ids at `index` (after all others by default).

        Returns its own `miou_dataset` and `miou_per_frame`, both over the classes that occur in its truth or
        prediction.
        """
        areas = frame_confusion(predicted_FHW, truth_FHW, self.classes)
        intersection_FK, predicted_FK, truth_FK = areas.intersection_FK, areas.predicted_FK, areas.truth_FK
        union_FK = predicted_FK + truth_FK - intersection_FK
        iou_FK = intersection_FK / np.maximum(union_FK, 1)
        # (1 + b) P R / (b P + R), multiplied out; 0 where the class is missed or only imagined.
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
        """Pixels of each class (rows) that were given each class (columns), over all clips: int64 [K, K]."""
        entries = np.array(self._confused).reshape(-1, 3)
        _, first = np.unique(entries[:, :2], axis=0, return_index=True)  # a clip counts once
        total = np.zeros(self.classes**2, np.int64)
        np.add.at(total, entries[first, 1], entries[first, 2])
        return total.reshape(self.classes, self.classes)

    def subset(self, indices: np.ndarray) -> Self:
        """An accumulator of the clips at `indices` alone."""
        part, entries = super().subset(indices), np.array(self._confused).reshape(-1, 3)
        part._confused = array("q", entries[np.isin(entries[:, 0], part._indices)].tobytes())
        return part

    def class_scores(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """Per class, float64 [R, K]: the pixel counts `intersection`, `predicted`, `truth` and `union`, the
        `frames` with a union, and `iou`, `iou_per_frame` and `f_per_frame`, NaN where the class never occurs.
        """
        clips = self._sums()
        counts_RN = resample_counts(indices_RN, len(clips))
        sums = (counts_RN @ clips.reshape(len(clips), -1)).reshape(-1, len(self._COLUMNS), self.classes)
        return self._ratios(dict(zip(self._COLUMNS, sums.transpose(1, 0, 2), strict=True)))

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`miou_dataset`, `miou_per_frame` and AVSS's `fscore_per_frame`, float64 [R], of each row of draws.

        The per-frame means run over all K classes. A class that is in the set but in none of the clips of
        a row is left out of that row's means, for it is the draw that lost it, not the set.
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
        """Counts and sums [R, K] of several clips as the figures of `class_scores`."""
        frames_RK = np.where(sums["frames"] > 0, sums["frames"], np.nan)
        iou_RK = sums["intersection"] / np.where(sums["union"] > 0, sums["union"], np.nan)
        counts = {key: values_RK for key, values_RK in sums.items() if key not in ("iou", "f")}
        return counts | {
            "iou": iou_RK,
            "iou_per_frame": sums["iou"] / frames_RK,
            "f_per_frame": sums["f"] / frames_RK,
        }


def nanmean(values_RK: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values_RK)
    counts = defined.sum(axis=-1)
    return np.where(defined, values_RK, 0).sum(axis=-1) / np.where(counts > 0, counts, np.nan)
