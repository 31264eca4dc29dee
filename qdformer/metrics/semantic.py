"""Mean IoU over classes, in the two conventions that papers on AVSBench-Semantic report.

*Dataset-level*: a class's intersections and unions are added up over all frames, divided once, and
averaged over the classes that have a union. *Per frame* (AVSS, Zhou et al., 2023): the ratio is taken
in every frame, averaged over the frames in which the class has a union, then over all classes, a class
that never occurs counting 0; there a few stray pixels in a frame cost as much as a missed object.
Background is one of the classes in both.

Shapes: F frames of one clip, H W pixels, K classes (background first), R resamples, N draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qdformer.metrics.avsbench import BETA_SQUARED
from qdformer.metrics.bootstrap import draw_counts

IGNORE = 255


@dataclass(frozen=True)
class FrameAreas:
    """Pixels of every class in every frame: int64 [F, K]."""

    intersection_FK: np.ndarray
    predicted_FK: np.ndarray
    truth_FK: np.ndarray

    @property
    def union_FK(self) -> np.ndarray:
        """Pixels that have the class in prediction or truth."""
        return self.predicted_FK + self.truth_FK - self.intersection_FK


def frame_areas(predicted_FHW: np.ndarray, truth_FHW: np.ndarray, classes: int) -> FrameAreas:
    """Count the pixels of `classes` classes (ids 0..classes-1); truth 255 is ignored, prediction included.

    A frame in which nothing sounds is one whose truth is all background: it counts like any other.
    """
    frames = len(truth_FHW)
    pairs_FHW = truth_FHW.astype(np.int64) * classes + predicted_FHW
    pairs_FHW += np.arange(frames)[:, None, None] * classes**2
    counted = pairs_FHW[truth_FHW != IGNORE]
    confusion_FKK = np.bincount(counted, minlength=frames * classes**2).reshape(frames, classes, classes)
    return FrameAreas(
        intersection_FK=confusion_FKK.diagonal(axis1=1, axis2=2),
        predicted_FK=confusion_FKK.sum(axis=1),
        truth_FK=confusion_FKK.sum(axis=2),
    )


class SemanticScores:
    """Both mean IoUs of a test set, whole or by class, clip by clip."""

    _COLUMNS = ("intersection", "predicted", "truth", "union", "iou", "f", "frames")

    def __init__(self, classes: int):
        self.classes = classes
        self._clips: list[np.ndarray] = []

    def update(self, predicted_FHW: np.ndarray, truth_FHW: np.ndarray) -> dict[str, float]:
        """Add one clip of class ids; return its own `miou_dataset` and `miou_per_frame`.

        Both are means over the classes that occur in the clip's truth or prediction.
        """
        areas = frame_areas(predicted_FHW, truth_FHW, self.classes)
        union_FK = areas.union_FK
        iou_FK = areas.intersection_FK / np.maximum(union_FK, 1)
        # (1 + b) P R / (b P + R), multiplied out; 0 where the class is missed or only imagined.
        weighted_FK = BETA_SQUARED * areas.truth_FK + areas.predicted_FK
        f_FK = (1 + BETA_SQUARED) * areas.intersection_FK / np.maximum(weighted_FK, 1e-20)
        per_frame = (areas.intersection_FK, areas.predicted_FK, areas.truth_FK, union_FK, iou_FK, f_FK, union_FK > 0)
        self._clips.append(np.stack([values_FK.sum(axis=0) for values_FK in per_frame]).astype(np.float64))
        own = self.class_scores(np.array([[len(self._clips) - 1]]))
        return {"miou_dataset": mean_defined(own["iou"])[0], "miou_per_frame": mean_defined(own["iou_per_frame"])[0]}

    def class_scores(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """Per class, float64 [R, K]: the pixel counts `intersection`, `predicted`, `truth` and `union`, the
        `frames` with a union, and `iou`, `iou_per_frame` and `f_per_frame`, NaN where the class never occurs.
        """
        drawn, positions_RN = np.unique(indices_RN, return_inverse=True)
        counts_RN = draw_counts(positions_RN.reshape(indices_RN.shape), len(drawn))
        clips = np.stack([self._clips[index] for index in drawn])
        sums = (counts_RN @ clips.reshape(len(drawn), -1)).reshape(-1, len(self._COLUMNS), self.classes)
        result = dict(zip(self._COLUMNS, sums.transpose(1, 0, 2), strict=True))
        frames_RK = np.where(result["frames"] > 0, result["frames"], np.nan)
        iou_RK = result["intersection"] / np.where(result["union"] > 0, result["union"], np.nan)
        return result | {
            "iou": iou_RK,
            "iou_per_frame": result["iou"] / frames_RK,
            "f_per_frame": result.pop("f") / frames_RK,
        }

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`miou_dataset`, `miou_per_frame` and AVSS's `fscore_per_frame`, float64 [R], of each row of draws.

        The per-frame means run over all K classes. A class that is in the set but in none of the clips of
        a row is left out of that row's means, for it is the draw that lost it, not the set.
        """
        present_K = np.stack(self._clips)[:, self._COLUMNS.index("frames")].sum(axis=0) > 0
        share = present_K.mean()
        scores = self.class_scores(indices_RN)
        return {
            "miou_dataset": mean_defined(scores["iou"]),
            "miou_per_frame": mean_defined(scores["iou_per_frame"]) * share,
            "fscore_per_frame": mean_defined(scores["f_per_frame"]) * share,
        }


def mean_defined(values_RK: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where nothing is."""
    defined = ~np.isnan(values_RK)
    counts = defined.sum(axis=-1)
    return np.where(defined, values_RK, 0).sum(axis=-1) / np.where(counts > 0, counts, np.nan)
