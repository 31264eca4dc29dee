"""Robustness to negative audio: the metrics of AVSBench-Robust (Li et al., arXiv 2502.00358).

The benchmark replaces the sound of a clip by a negative: silence, noise, or the sound of an object that is not in the
picture. Every pixel that is then predicted as sounding is a false positive.

Shapes: F frames of one clip, H W pixels, R resamples.
"""

from __future__ import annotations

import numpy as np

from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator

MIN_PREDICTED_AREA = 0.01
"""Fraction of its pixels above which a frame counts as predicted."""


class PredictedArea(ClipAccumulator):
    """Area predicted as sounding, whatever its position. With a negative sound all of it is false-positive area.

    `predicted_area` is the fraction of pixels with a probability above 0.5, averaged over frames: with a negative
    sound, the false-positive rate of the published code. `predicted_frames` is our addition: the fraction of frames of
    which more than `MIN_PREDICTED_AREA` is predicted, so that the prediction of a small object counts fully.
    """

    def __init__(self) -> None:
        super().__init__(3)

    def update(
        self, mask_FHW: np.ndarray, ignored_FHW: np.ndarray | None = None, *, index: int | None = None
    ) -> dict[str, float]:
        """Add the predicted masks of a clip, bool, and return its own `predicted_area` and `predicted_frames`.

        `index` is its position in the test set, by default after all others.
        """
        if ignored_FHW is None:
            share_F = mask_FHW.mean(axis=(1, 2))
        else:
            kept_FHW = ~ignored_FHW
            pixels_F = np.maximum(np.count_nonzero(kept_FHW, axis=(1, 2)), 1)
            share_F = np.count_nonzero(mask_FHW & kept_FHW, axis=(1, 2)) / pixels_F
        large_F = share_F > MIN_PREDICTED_AREA
        self._add((share_F.sum(), large_F.sum(), len(share_F)), index)
        return {"predicted_area": float(share_F.mean()), "predicted_frames": float(large_F.mean())}

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`predicted_area` and `predicted_frames` of each resample: float64 [R]."""
        records = self._records()
        share_R, large_R, frames_R = (resample_counts(indices_RN, len(records)) @ records).T
        return {"predicted_area": share_R / frames_R, "predicted_frames": large_R / frames_R}


def g_miou(positive: np.ndarray | float, negative: np.ndarray | float) -> np.ndarray | float:
    """G-mIoU: harmonic mean of the mIoU with the true sound and of 1 minus the mIoU with a negative sound.

    Both are AVSBench's J against the labels of the true sound. A model that segments exactly the sounding objects, and
    nothing with a negative sound, scores 1; a model that ignores the sound and has an mIoU of m scores 2 m (1 - m).
    The published code does not contain the formula. This one reproduces the published 23.8 % of a model with an mIoU
    of 86.2 % if its predictions do not change with the sound. Both values are taken over the frames that have an
    object (`avsbench_j_sounding`), as all frames of S4 have: in a frame without one, a model that correctly predicts
    nothing with the negative sound would be penalized.
    """
    rejected = 1 - negative
    return 2 * positive * rejected / np.maximum(positive + rejected, 1e-12)
