"""J and F of AVSBench (Zhou et al., ECCV 2022) for the binary tasks S4 and MS3.

Shapes: V clips of T frames, F frames, H W pixels, N thresholds (in `mask_iou`: frames), R resamples.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike

from qdformer.metrics.bootstrap import resample_counts
from qdformer.metrics.clips import ClipAccumulator, MetricError, as_mask, check_same_shape

BETA_SQUARED = 0.3
NUM_STEPS = 254
"""Number of intervals between the 255 thresholds."""

# Computed by torch as in the published code: NumPy rounds differently, and a probability that equals a threshold must
# fall on the published side of it.
THRESHOLDS = torch.linspace(0, 1 - 1e-10, NUM_STEPS + 1).numpy()
_PADDED = np.append(THRESHOLDS, np.float32(np.inf))


def mask_iou(logits: ArrayLike | torch.Tensor, target: ArrayLike | torch.Tensor) -> torch.Tensor:
    """J of AVSBench for each frame, as its `mask_iou`: float64 [N], from logits [N, H, W] and masks of 0 and 1.

    A pixel is predicted if the sigmoid of its logit exceeds 0.5. Empty truth: see `jaccard`. Both arguments are
    tensors or NumPy arrays. Raises `MetricError` if the shapes differ or the target is not a mask.
    """
    logits_NHW, target_NHW = check_same_shape("N H W", logits=logits, target=target)
    return torch.from_numpy(jaccard(_probability(logits_NHW) > 0.5, as_mask("target", target_NHW)))


def f_measure(logits: ArrayLike | torch.Tensor, target: ArrayLike | torch.Tensor, batch_videos: int) -> torch.Tensor:
    """F of AVSBench, as its `Eval_Fmeasure` averaged over batches: float64 scalar, from logits [V, T, H, W] and masks.

    The published value depends on the batch size: here it is `batch_videos`, and the last batch may be smaller.
    Frames without an object are excluded. Takes the same types and raises the same errors as `mask_iou`.
    """
    logits_VTHW, target_VTHW = check_same_shape("V T H W", logits=logits, target=target)
    truth_VTHW, scores = as_mask("target", target_VTHW), AVSBenchScores(batch_videos)
    for logits_FHW, truth_FHW in zip(logits_VTHW, truth_VTHW, strict=True):
        scores.update(_probability(logits_FHW), truth_FHW)
    return torch.tensor(scores.compute(scores.all_indices)["avsbench_f"][0])


def _probability(logits: np.ndarray) -> np.ndarray:
    # By torch, as in the published code, for the same reason as THRESHOLDS.
    return torch.from_numpy(np.ascontiguousarray(logits)).float().sigmoid().numpy()


def jaccard(mask_FHW: np.ndarray, truth_FHW: np.ndarray, ignored_FHW: np.ndarray | None = None) -> np.ndarray:
    """J of AVSBench for each frame: float64 [F]. All arguments are bool; ignored pixels are excluded.

    Empty truth: the fraction of pixels predicted as background, so a single wrong pixel costs almost nothing. Empty
    prediction for a present object: 0.
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
    """F (beta^2 = 0.3) of each frame at 255 thresholds from 0 to 1.

    `soft_FHW` is the probability of an object, float in 0..1; the others are bool. Returns the curves, float64
    [F, 255], and which frames have an object, bool [F]. Empty truth: the curve is 0 and the frame is excluded from
    every mean, so F ignores false positives in frames without a sounding object.

    Computed in one pass: each pixel is counted in the bin of the highest threshold that it reaches, and cumulative
    sums from the top give the counts at every threshold.
    """
    frames = len(soft_FHW)
    soft_FHW = soft_FHW.astype(np.float32, copy=False)
    # The truncated product is off by one bin at most; the two comparisons correct it.
    bins_FHW = (soft_FHW * np.float32(NUM_STEPS)).astype(np.int32)
    bins_FHW += _PADDED[bins_FHW + 1] <= soft_FHW
    bins_FHW -= _PADDED[bins_FHW] > soft_FHW
    cells_FHW = (np.arange(frames, dtype=np.int32)[:, None, None] * 2 + truth_FHW) * (NUM_STEPS + 1) + bins_FHW
    cells = cells_FHW.ravel() if ignored_FHW is None else cells_FHW[~ignored_FHW]
    counts_F2N = np.bincount(cells, minlength=frames * 2 * (NUM_STEPS + 1)).reshape(frames, 2, NUM_STEPS + 1)
    reached_F2N = np.cumsum(counts_F2N[:, :, ::-1], axis=2)[:, :, ::-1]
    hits_FN, predicted_FN = reached_F2N[:, 1], reached_F2N.sum(axis=1)
    truth_F = counts_F2N[:, 1].sum(axis=1)
    # (1 + b) P R / (b P + R) with P = hits / predicted and R = hits / truth, simplified.
    denominator_FN = BETA_SQUARED * truth_F[:, None] + predicted_FN
    curves_FN = (1 + BETA_SQUARED) * hits_FN / np.maximum(denominator_FN, 1e-20)
    return curves_FN, truth_F > 0


class AVSBenchScores(ClipAccumulator):
    """J and F of a test set, accumulated clip by clip.

    J is the mean over frames. F is computed for every `batch_videos` consecutive clips: the maximum of the mean curve
    of their frames that have an object (0 if none has), averaged over these batches, of which the last may be smaller.
    The value of the published script depends on its batch size, 4. Here it depends neither on the batches of the
    data loader nor on the number of processes.
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
        """Add a clip and return its own `avsbench_j` and `avsbench_f` (NaN for a clip without any object).

        `index` is its position in the test set, by default after all others.
        """
        j_F = jaccard(soft_FHW > 0.5, truth_FHW, ignored_FHW)
        curves_FN, present_F = f_curves(soft_FHW, truth_FHW, ignored_FHW)
        curve_N, present = curves_FN[present_F].sum(axis=0), present_F.sum()
        self._add([j_F.sum(), len(j_F), j_F[present_F].sum(), present, *curve_N], index)
        return {"avsbench_j": float(j_F.mean()), "avsbench_f": float(curve_N.max() / present) if present else np.nan}

    def compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        """`avsbench_j`, `avsbench_f` and `avsbench_j_sounding` of each resample: float64 [R].

        The last is J over the frames that have an object, NaN if none has.
        """
        from scipy.sparse import csr_array

        records = self._records()
        j, frames, sounding_j, sounding = (resample_counts(indices_RN, len(records)) @ records[:, :4]).T
        starts = np.arange(0, indices_RN.shape[1], self.batch_videos)
        f_R = np.empty(len(indices_RN))
        rows = max(1, 2**19 // (len(starts) * records.shape[1]))  # about 4 MB per chunk
        for first in range(0, len(indices_RN), rows):
            part_RN = indices_RN[first : first + rows]
            # One row for each batch of each resample, with a one for every clip in the batch.
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
