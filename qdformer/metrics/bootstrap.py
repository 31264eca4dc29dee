"""Bootstrap over clips: draw the test set again from itself and see how far a figure moves."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_AT_ONCE = 2**16
"""Indices drawn at once: memory does not grow with the number of clips."""


def bootstrap_indices(clips: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """`count` draws with replacement of `clips` clips, some at a time: int64 [R, clips], equal for equal seeds."""
    random = np.random.default_rng(seed)
    for first in range(0, count, rows := max(1, _AT_ONCE // clips)):
        yield random.integers(0, clips, size=(min(rows, count - first), clips))


def resample_counts(indices_RN: np.ndarray, clips: int) -> np.ndarray:
    """How often each clip was drawn: float64 [R, clips], to turn sums over draws into one product."""
    rows = len(indices_RN)
    offsets_RN = indices_RN + clips * np.arange(rows)[:, None]
    return np.bincount(offsets_RN.ravel(), minlength=rows * clips).reshape(rows, clips).astype(np.float64)


def confidence_interval(values_R: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the resampled figures; undefined ones (NaN) are left out.

    Both ends are NaN where no resample defines the figure.
    """
    values_R = values_R[~np.isnan(values_R)]
    if not values_R.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
