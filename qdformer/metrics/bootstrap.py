"""Bootstrap over clips: draw the test set again from itself and see how far a figure moves."""

from __future__ import annotations

import numpy as np


def resamples(clips: int, count: int, seed: int) -> np.ndarray:
    """`count` draws with replacement of `clips` clips: int64 [count, clips], the same for the same seed."""
    return np.random.default_rng(seed).integers(0, clips, size=(count, clips))


def draw_counts(indices_RN: np.ndarray, clips: int) -> np.ndarray:
    """How often each clip was drawn: float64 [R, clips], to turn sums over draws into one product."""
    rows = len(indices_RN)
    offsets_RN = indices_RN + clips * np.arange(rows)[:, None]
    return np.bincount(offsets_RN.ravel(), minlength=rows * clips).reshape(rows, clips).astype(np.float64)


def interval(values_R: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the resampled figures; undefined ones (NaN) are left out.

    Both ends are NaN where no resample defines the figure.
    """
    values_R = values_R[~np.isnan(values_R)]
    if not values_R.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
