"""Bootstrap over clips: the test set is resampled with replacement to estimate how much a metric varies.

Shapes: R resamples, N draws in each.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

_MAX_CHUNK = 2**16
"""Indices drawn at once, so that memory does not grow with the number of clips."""


def bootstrap_indices(clips: int, count: int, seed: int) -> Iterator[np.ndarray]:
    """Yield `count` resamples of `clips` clips in chunks: int64 [R, clips]. Equal seeds give equal indices."""
    random = np.random.default_rng(seed)
    rows = max(1, _MAX_CHUNK // clips)
    for first in range(0, count, rows):
        yield random.integers(0, clips, size=(min(rows, count - first), clips))


def resample_counts(indices_RN: np.ndarray, clips: int) -> np.ndarray:
    """How often each clip was drawn: float64 [R, clips]. It turns sums over draws into one matrix product."""
    rows = len(indices_RN)
    offsets_RN = indices_RN + clips * np.arange(rows)[:, None]
    return np.bincount(offsets_RN.ravel(), minlength=rows * clips).reshape(rows, clips).astype(np.float64)


def confidence_interval(values_R: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of a resampled metric, over the resamples in which it is defined (not NaN).

    Both ends are NaN if no resample defines the metric.
    """
    values_R = values_R[~np.isnan(values_R)]
    if not values_R.size:
        return float("nan"), float("nan")
    low, high = np.quantile(values_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
