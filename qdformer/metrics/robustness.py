"""What a model marks when it should mark nothing: the scores of AVSBench-Robust (Li et al., arXiv 2502.00358).

There the sound of a clip is replaced by a negative: silence, noise, or the sound of something that is not in the
picture. Whatever is marked then is wrong.

Shapes: F frames of one clip, H W pixels, R resamples.
"""

from __future__ import annotations

import numpy as np

from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator

MIN_PREDICTED_AREA = 0.01
"""The share of its pixels above which a frame counts as marked."""


class PredictedArea(ClipAccumulator):
    """How much is marked, wherever: under a negative sound all of it is false.

    `predicted_area` is the mean over frames of the share of the pixels with a probability above 0.5: the
    false-positive rate of the published code. `predicted_frames` is ours: the share of the frames of which more than
    `MIN_PREDICTED_AREA` is predicted; an area as large as an object counts fully, however small the object is.
    """

    def __init__(self) -> None:
        super().__init__(3)

    def update(
        self, mask_FHW: np.ndarray, ignored_FHW: np.ndarray | None = None, *, index: int | None = None
    ) -> dict[str, float]:
        """Add the clip at `index` (after all others by default) by what is marked in it, bool; return its own."""
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
        """`predicted_area` and `predicted_frames`, float64 [R], of the clips drawn by each row of indices."""
        records = self._records()
        share_R, large_R, frames_R = (resample_counts(indices_RN, len(records)) @ records).T
        return {"predicted_area": share_R / frames_R, "predicted_frames": large_R / frames_R}


def g_miou(positive: np.ndarray | float, negative: np.ndarray | float) -> np.ndarray | float:
    """G-mIoU: the harmonic mean of the mIoU under the true sound and of one minus that under a negative.

    Both are AVSBench's J against the labels of the true sound: 1 is a model that marks all that sounds and nothing
    that does not; one that marks the same whatever it hears has 2 m (1 - m). The published code leaves the formula to
    a spreadsheet; this one gives the published 23.8 % of a model that has 86.2 % under the true sound, if it marks
    the same under a negative. We take both over the frames that have an object (`avsbench_j_sounding`), as all of S4
    do: where the true sound is silent, a model that rightly marks nothing would be blamed for it.
    """
    rejected = 1 - negative
    return 2 * positive * rejected / np.maximum(positive + rejected, 1e-12)
