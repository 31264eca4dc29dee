"""J, boundary F and their mean as defined by DAVIS 2017 (Perazzi et al., CVPR 2016; Pont-Tuset et al., 2017).

Shapes: F frames of one clip, H W pixels, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import ArrayLike

from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator, as_mask, check_same_shape

TOLERANCE = 0.008
"""Tolerance of the boundary position as a fraction of the image diagonal, rounded up to whole pixels."""


def region_similarity(annotation: ArrayLike | torch.Tensor, segmentation: ArrayLike | torch.Tensor) -> torch.Tensor:
    """J of DAVIS for each frame, float64 [N], from masks [N, H, W] of bool or 0 and 1. Empty frames: see `region_j`.

    The masks are tensors or NumPy arrays. Raises `MetricError` if their shapes differ or they hold other values.
    """
    return _score(region_j, annotation, segmentation)


def boundary_f(annotation: ArrayLike | torch.Tensor, segmentation: ArrayLike | torch.Tensor) -> torch.Tensor:
    """Boundary F of DAVIS for each frame, float64 [N], from masks [N, H, W]. Empty frames: see `contour_f`.

    Takes the same masks and raises the same errors as `region_similarity`.
    """
    return _score(contour_f, annotation, segmentation)


def _score(
    score: Callable, annotation: ArrayLike | torch.Tensor, segmentation: ArrayLike | torch.Tensor
) -> torch.Tensor:
    truth_NHW, mask_NHW = check_same_shape("N H W", annotation=annotation, segmentation=segmentation)
    return torch.from_numpy(score(as_mask("segmentation", mask_NHW), as_mask("annotation", truth_NHW)))


def region_j(mask_FHW: np.ndarray, truth_FHW: np.ndarray, ignored_FHW: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of each frame: float64 [F]. All arguments are bool.

    Empty truth: 1 if the prediction is empty as well, otherwise 0, even for a single predicted pixel.
    """
    mask_FHW, truth_FHW = _without(ignored_FHW, mask_FHW), _without(ignored_FHW, truth_FHW)
    intersection_F = np.count_nonzero(mask_FHW & truth_FHW, axis=(1, 2))
    union_F = np.count_nonzero(mask_FHW | truth_FHW, axis=(1, 2))
    return np.where(union_F == 0, 1.0, intersection_F / np.maximum(union_F, 1))


def contour_f(
    mask_FHW: np.ndarray,
    truth_FHW: np.ndarray,
    ignored_FHW: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
) -> np.ndarray:
    """F of the boundaries of each frame within the tolerance: float64 [F]. Masks are bool.

    Empty truth: 1 if the prediction has no boundary either, otherwise 0. A mask that covers the whole image has no
    boundary and counts as empty.
    """
    radius = math.ceil(tolerance * math.hypot(*mask_FHW.shape[1:]))
    edges_FHW = _boundaries(_without(ignored_FHW, mask_FHW))
    true_FHW = _boundaries(_without(ignored_FHW, truth_FHW))
    edge_F, true_F = np.count_nonzero(edges_FHW, axis=(1, 2)), np.count_nonzero(true_FHW, axis=(1, 2))
    hits_F = np.count_nonzero(edges_FHW & dilate(true_FHW, radius), axis=(1, 2))
    found_F = np.count_nonzero(true_FHW & dilate(edges_FHW, radius), axis=(1, 2))
    # If one boundary is missing, the reference code sets precision and recall to 1 and 0; F is 0 here as well.
    precision_F, recall_F = hits_F / np.maximum(edge_F, 1), found_F / np.maximum(true_F, 1)
    f_F = 2 * precision_F * recall_F / np.maximum(precision_F + recall_F, 1e-12)
    return np.where((edge_F == 0) & (true_F == 0), 1.0, f_F)


def dilate(points_FHW: np.ndarray, radius: int) -> np.ndarray:
    """Binary dilation with a disk: every pixel at most `radius` away from a set pixel, bool [F, H, W].

    The disk is applied row by row. Its rows widen towards the center, so the spread along x of each row extends that
    of the previous row and is then shifted along y: 4 * radius shifts instead of one per pixel of the disk.
    """
    result = np.zeros_like(points_FHW)
    spread = points_FHW.copy()
    width = 0
    for dy in range(radius, -1, -1):
        while width < math.isqrt(radius * radius - dy * dy):
            width += 1
            spread[:, :, width:] |= points_FHW[:, :, :-width]
            spread[:, :, :-width] |= points_FHW[:, :, width:]
        if dy:
            result[:, dy:] |= spread[:, :-dy]
            result[:, :-dy] |= spread[:, dy:]
        else:
            result |= spread
    return result


def _boundaries(mask_FHW: np.ndarray) -> np.ndarray:
    # As in DAVIS, a boundary pixel differs from its neighbor to the right, below, or diagonally below to the right;
    # the last row and column are repeated outside the image.
    padded = np.pad(mask_FHW, ((0, 0), (0, 1), (0, 1)), mode="edge")
    here = padded[:, :-1, :-1]
    return (here != padded[:, :-1, 1:]) | (here != padded[:, 1:, :-1]) | (here != padded[:, 1:, 1:])


def _without(ignored_FHW: np.ndarray | None, mask_FHW: np.ndarray) -> np.ndarray:
    return mask_FHW if ignored_FHW is None else mask_FHW & ~ignored_FHW


class DavisScores(ClipAccumulator):
    """J, F and J&F of a test set, averaged as in DAVIS: over the frames of each clip, then over clips."""

    def __init__(self) -> None:
        super().__init__(2)

    def update(
        self,
        mask_FHW: np.ndarray,
        truth_FHW: np.ndarray,
        ignored_FHW: np.ndarray | None = None,
        *,
        index: int | None = None,
    ) -> dict[str, float]:
        """Add a clip and return its own `davis_j`, `davis_f` and `davis_jf`.

        `index` is its position in the test set, by default after all others.
        """
        j = float(region_j(mask_FHW, truth_FHW, ignored_FHW).mean())
        f = float(contour_f(mask_FHW, truth_FHW, ignored_FHW).mean())
        self._add((j, f), index)
        return {"davis_j": j, "davis_f": f, "davis_jf": (j + f) / 2}

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`davis_j`, `davis_f` and `davis_jf` of each resample: float64 [R]."""
        j_R, f_R = (resample_counts(indices_RN, len(self)) @ self._records() / indices_RN.shape[1]).T
        return {"davis_j": j_R, "davis_f": f_R, "davis_jf": (j_R + f_R) / 2}
