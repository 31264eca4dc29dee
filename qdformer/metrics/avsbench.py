"""J and F of AVSBench (Zhou et al., ECCV 2022), for the binary tasks S4 and MS3.

Shapes: V clips of T frames, F frames, H W pixels, N thresholds (of `mask_iou`: frames), R resamples.
"""

from __future__ import annotations

import numpy as np
import torch

from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator, MetricError, as_mask, check_same_shape

BETA_SQUARED = 0.3
STEPS = 254
"""Intervals between the 255 thresholds."""


# torch rounds in its own way here, and a soft map that lies on a threshold must fall on the published side of it.
THRESHOLDS = torch.linspace(0, 1 - 1e-10, STEPS + 1).numpy()
_PADDED = np.append(THRESHOLDS, np.float32(np.inf))


def mask_iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """AVSBench's J of each frame, as its `mask_iou`: float64 [N], of logits [N, H, W] and masks of 0 and 1.

    A pixel is predicted where its probability, the logit's sigmoid, exceeds 0.5. Empty truth: see `jaccard`.
    Raises `MetricError` for shapes that differ and for targets that are no masks.
    """
    logits_NHW, target_NHW = check_same_shape("N H W", logits=logits, target=target)
    return torch.from_numpy(jaccard(_probability(logits_NHW) > 0.5, as_mask("target", target_NHW)))


def f_measure(logits: torch.Tensor, target: torch.Tensor, batch_videos: int) -> torch.Tensor:
    """AVSBench's F, as its `Eval_Fmeasure` averaged over batches: float64 scalar, of logits [V, T, H, W] and masks.

    The published figure depends on the batch size: here it is `batch_videos`, and the last batch may be smaller.
    Frames without an object count nowhere. Raises `MetricError` as `mask_iou` does.
    """
    logits_VTHW, target_VTHW = check_same_shape("V T H W", logits=logits, target=target)
    truth_VTHW, scores = as_mask("target", target_VTHW), AVSBenchScores(batch_videos)
    for logits_FHW, truth_FHW in zip(logits_VTHW, truth_VTHW, strict=True):
        scores.update(_probability(logits_FHW), truth_FHW)
    return torch.tensor(scores.compute(scores.all_indices)["avsbench_f"][0])


def _probability(logits: np.ndarray) -> np.ndarray:
    # torch's sigmoid, for a soft map that lies on a threshold must fall on the published side of it
    return torch.from_numpy(logits).float().sigmoid().numpy()


def jaccard(mask_FHW: np.ndarray, truth_FHW: np.ndarray, ignored_FHW: np.ndarray | None = None) -> np.ndarray:
    """AVSBench's J of each frame: float64 [F]. All arguments are bool; ignored pixels count nowhere.

    Empty truth: the share of the pixels that are predicted background, so that one stray pixel costs
    next to nothing. Empty prediction for a present object: 0.
    """
    if ignored_FHW is None:
        pixels_F = np.full(len(mask_FHW), mask_FHW[0].size if len(mask_FHW) else 0)
    else:
        mask_FHW, truth_FHW = mask_FHW & ~ignored_FHW, truth_FHW & ~ignored_FHW
        pixels_F = np.count_nonzero(~ignored_FHW, axis=(1, 2))
    predicted_F = np.count_nonzero(mask_FHW, axis=(1, 2))
    silent_F = ~truth_FHW.any(axis=(1, 2))
    hits_F = np.where(silent_F, pixels_F - predicted_F, np.count_nonzero(mask_FHW & truth_FHW, axis=(1, 2)))
    of_F = np.where(silent_F, pixels_F, np.count_nonzero(mask_FHW | truth_FHW, axis=(1, 2)))
    return hits_F / (of_F + 1e-7)


def f_curves(
    soft_FHW: np.ndarray, truth_FHW: np.ndarray, ignored_FHW: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """F (beta² = 0.3) of each frame at 255 thresholds from 0 to 1.

    `soft_FHW` is the probability of an object, float in 0..1; the others are bool. Returns the curves,
    float64 [F, 255], and bool [F]: which frames have an object. Empty truth: the curve is 0 and the
    frame is marked to be left out of every mean, so F never sees what is predicted into silence.

    One pass: each pixel goes into the bin of the highest threshold that it reaches, and sums from the
    top give the counts at every threshold.
    """
    frames = len(soft_FHW)
    soft_FHW = soft_FHW.astype(np.float32, copy=False)
    # The truncated product misses the bin by one at most; two look-ups put that right.
    bins_FHW = (soft_FHW * np.float32(STEPS)).astype(np.int32)
    bins_FHW += _PADDED[bins_FHW + 1] <= soft_FHW
    bins_FHW -= _PADDED[bins_FHW] > soft_FHW
    cells_FHW = (np.arange(frames, dtype=np.int32)[:, None, None] * 2 + truth_FHW) * (STEPS + 1) + bins_FHW
    cells = cells_FHW.ravel() if ignored_FHW is None else cells_FHW[~ignored_FHW]
    counts_F2N = np.bincount(cells, minlength=frames * 2 * (STEPS + 1)).reshape(frames, 2, STEPS + 1)
    reached_F2N = np.cumsum(counts_F2N[:, :, ::-1], axis=2)[:, :, ::-1]
    hits_FN, predicted_FN = reached_F2N[:, 1], reached_F2N.sum(axis=1)
    present_F = counts_F2N[:, 1].any(axis=1)
    # (1 + b) P R / (b P + R) with P = hits / predicted and R = hits / truth, multiplied out.
    denominator_FN = BETA_SQUARED * counts_F2N[:, 1].sum(axis=1)[:, None] + predicted_FN
    curves_FN = (1 + BETA_SQUARED) * hits_FN / np.maximum(denominator_FN, 1e-20)
    return curves_FN, present_F


class AVSBenchScores(ClipAccumulator):
    """J and F of a test set, clip by clip.

    J is the mean over frames. F is, for every `batch_videos` clips in the order of their places, the highest
    point of the mean curve of their frames that have an object (0 if none has), averaged over these
    batches, the last of which may be smaller: the published script's figure depends on its batch size,
    4, and this one is the same whatever the loader's batches are and however many processes measure.
    """

    def __init__(self, batch_videos: int = 4):
        super().__init__(4 + len(THRESHOLDS))
        if batch_videos < 1:
            raise MetricError(f"batch_videos is {batch_videos}; expected at least 1")
        self.batch_videos = batch_videos

    def update(
        self,
        soft_FHW: np.ndarray,
        truth_FHW: np.ndarray,
        ignored_FHW: np.ndarray | None = None,
        *,
        index: int | None = None,
    ) -> dict[str, float]:
        """Add the clip that stands at `index` in the test set (after all others by default).

        Returns its own `avsbench_j` and `avsbench_f` (NaN for a clip without any object).
        """
        j_F = jaccard(soft_FHW > 0.5, truth_FHW, ignored_FHW)
        curves_FN, present_F = f_curves(soft_FHW, truth_FHW, ignored_FHW)
        curve_N, present = curves_FN[present_F].sum(axis=0), present_F.sum()
        self._add([j_F.sum(), len(j_F), j_F[present_F].sum(), present, *curve_N], index)
        return {"avsbench_j": float(j_F.mean()), "avsbench_f": float(curve_N.max() / present) if present else np.nan}

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`avsbench_j`, `avsbench_f` and `avsbench_j_sounding`, float64 [R], of the clips drawn by each row of indices.

        The last is J over the frames that have an object, NaN where none has.
        """
        from scipy.sparse import csr_array

        records = self._records()
        j, frames, sounding_j, sounding = (resample_counts(indices_RN, len(records)) @ records[:, :4]).T
        starts = np.arange(0, indices_RN.shape[1], self.batch_videos)
        f_R = np.empty(len(indices_RN))
        rows = max(1, 2**19 // (len(starts) * records.shape[1]))  # about 4 MB at a time
        for first in range(0, len(indices_RN), rows):
            part_RN = indices_RN[first : first + rows]
            # One row for each batch of each draw, with a one for every clip in it.
            ends = np.append((np.arange(len(part_RN))[:, None] * part_RN.shape[1] + starts).ravel(), part_RN.size)
            batches = csr_array((np.ones(part_RN.size), part_RN.ravel(), ends), (len(ends) - 1, len(records)))
            sums = batches @ records[:, 3:]
            f = sums[:, 1:].max(axis=1) / np.maximum(sums[:, 0], 1)
            f_R[first : first + rows] = f.reshape(len(part_RN), -1).mean(axis=1)
        return {
            "avsbench_j": j / frames,
            "avsbench_f": f_R,
            "avsbench_j_sounding": sounding_j / np.where(sounding > 0, sounding, np.nan),
        }
