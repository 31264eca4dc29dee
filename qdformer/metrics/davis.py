"""J, boundary F and their mean, as DAVIS 2017 defines them (Perazzi et al., CVPR 2016; Pont-Tuset et al., 2017).

Shapes: F frames of one clip, H W pixels, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch

from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator, as_mask, check_same_shape

TOLERANCE = 0.008
"""How far a boundary may be off, as a share of the image's diagonal (rounded up to whole pixels)."""


def region_similarity(annotation: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
    """DAVIS's J of each frame: float64 [N], of masks [N, H, W] (bool, or 0 and 1). Empty frames: see `region_j`.

    Raises `MetricError` for shapes that differ and for values that are no masks.
    """
    return _score(region_j, annotation, segmentation)


def boundary_f(annotation: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
    """DAVIS's F of each frame's boundaries: float64 [N], of masks [N, H, W]. Empty frames: see `contour_f`.

    Raises `MetricError` as `region_similarity` does.
    """
    return _score(contour_f, annotation, segmentation)


def _score(score: Callable, annotation: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
    truth_NHW, mask_NHW = check_same_shape("N H W", annotation=annotation, segmentation=segmentation)
    return torch.from_numpy(score(as_mask("segmentation", mask_NHW), as_mask("annotation", truth_NHW)))


def region_j(mask_FHW: np.ndarray, truth_FHW: np.ndarray, ignored_FHW: np.ndarray | None = None) -> np.ndarray:
    """Intersection over union of each frame: float64 [F]. All arguments are bool.

    Empty truth: 1 if the prediction is empty too, else 0, even for one stray pixel.
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
    """F of each frame's boundaries within the tolerance: float64 [F]. Masks are bool.

    Empty truth: 1 if the prediction has no boundary either, else 0. A mask over the whole image has no
    boundary and counts as empty.
    """
    radius = math.ceil(tolerance * math.hypot(*mask_FHW.shape[1:]))
    edges_FHW = _boundaries(_without(ignored_FHW, mask_FHW))
    true_FHW = _boundaries(_without(ignored_FHW, truth_FHW))
    edge_F, true_F = np.count_nonzero(edges_FHW, axis=(1, 2)), np.count_nonzero(true_FHW, axis=(1, 2))
    hits_F = np.count_nonzero(edges_FHW & dilate(true_FHW, radius), axis=(1, 2))
    found_F = np.count_nonzero(true_FHW & dilate(edges_FHW, radius), axis=(1, 2))
    # With one boundary missing the reference sets precision and recall to 1 and 0; their F is 0 all the same.
    precision_F, recall_F = hits_F / np.maximum(edge_F, 1), found_F / np.maximum(true_F, 1)
    f_F = 2 * precision_F * recall_F / np.maximum(precision_F + recall_F, 1e-12)
    return np.where((edge_F == 0) & (true_F == 0), 1.0, f_F)


def dilate(points_FHW: np.ndarray, radius: int) -> np.ndarray:
    """Every pixel whose distance to a set pixel is at most `radius`: bool [F, H, W].

    The disk is laid row by row: its rows get wider towards the middle, so each row's spread along x
    grows from the one before and is then moved along y, which takes 4 · radius shifts and not one per
    pixel of the disk.
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
    # DAVIS marks a pixel that differs from its neighbour to the right, below, or right below; outside the
    # image the last row and column go on.
    padded = np.pad(mask_FHW, ((0, 0), (0, 1), (0, 1)), mode="edge")
    here = padded[:, :-1, :-1]
    return (here != padded[:, :-1, 1:]) | (here != padded[:, 1:, :-1]) | (here != padded[:, 1:, 1:])


def _without(ignored_FHW: np.ndarray | None, mask_FHW: np.ndarray) -> np.ndarray:
    return mask_FHW if ignored_FHW is None else mask_FHW & ~ignored_FHW


class DavisScores(ClipAccumulator):
    """J, F and J&F of a test set: the mean over clips of each clip's mean over frames, as DAVIS averages."""

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
        """Add the clip at `index` (after all others by default); return its own `davis_j`, `davis_f`, `davis_jf`."""
        j = float(region_j(mask_FHW, truth_FHW, ignored_FHW).mean())
        f = float(contour_f(mask_FHW, truth_FHW, ignored_FHW).mean())
        self._add((j, f), index)
        return {"davis_j": j, "davis_f": f, "davis_jf": (j + f) / 2}

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`davis_j`, `davis_f` and `davis_jf`, float64 [R], of the clips drawn by each row of indices."""
        j_R, f_R = (resample_counts(indices_RN, len(self)) @ self._records() / indices_RN.shape[1]).T
        return {"davis_j": j_R, "davis_f": f_R, "davis_jf": (j_R + f_R) / 2}
