"""The comparison of trainings that were evaluated on the same test set.

Each evaluation of a test set resamples its clips with the same seed, so that resample r of one training can be compared
with resample r of another. `Group` combines the trainings of one row of a sweep, which differ in their seeds: its
hierarchical bootstrap resamples seeds and clips.

Shapes: S seeds, R = 1 + number of resamples; position 0 is the whole test set.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdformer.metrics.bootstrap import confidence_interval
from qdformer.reporting.result import read_resamples, read_table


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with the limits of its 95 % interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """The metrics of one training by (condition, metric): float64 [R]; `uids` are the clips that were resampled."""

    uids: tuple[str, ...]
    values: Mapping[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Group:
    """The trainings of one row by seed."""

    runs: Mapping[int, Resamples]

    def metric(self, condition: str, metric: str, seeds: list[int] | None = None) -> np.ndarray:
        """float64 [S, R] of the given seeds (default: all), NaN where a training does not define the metric."""
        some = next(iter(next(iter(self.runs.values())).values.values()))
        undefined_R = np.full_like(some, np.nan)
        return np.stack(
            [self.runs[seed].values.get((condition, metric), undefined_R) for seed in seeds or list(self.runs)]
        )

    def estimate(self, condition: str, metric: str) -> Estimate:
        """The mean over the seeds."""
        return hierarchical_bootstrap(self.metric(condition, metric))

    def difference(self, other: Group, condition: str, metric: str) -> Estimate | None:
        """The mean difference to `other` over the seeds that both have, paired by seed and clip.

        None if they share no seed or were not evaluated on the same clips.
        """
        seeds = [seed for seed in self.runs if seed in other.runs]
        clips = {run.uids for group in (self, other) for run in group.runs.values()}
        if not seeds or len(clips) != 1:
            return None
        own_SR, others_SR = (group.metric(condition, metric, seeds) for group in (self, other))
        return hierarchical_bootstrap(own_SR - others_SR)


def hierarchical_bootstrap(values_SR: np.ndarray, seed: int = 0) -> Estimate:
    """The mean over seeds [S, R], and its 95 % interval over seeds and clips.

    Each resample draws S of the S seeds with replacement, independently of the clips, which are those of column r for
    all seeds. With one seed the interval is over clips alone. With few seeds it is too narrow: S seeds drawn from S
    understate the variance between seeds by the factor (S - 1) / S.
    NaN if any seed is.
    """
    seeds, resamples = values_SR.shape[0], values_SR.shape[1] - 1
    value = float(values_SR[:, 0].mean())
    if math.isnan(value):
        return Estimate(value, value, value)
    drawn_RS = np.random.default_rng(seed).integers(0, seeds, size=(resamples, seeds))
    means_R = values_SR[drawn_RS, np.arange(1, resamples + 1)[:, None]].mean(axis=1)
    low, high = confidence_interval(means_R)
    return Estimate(value, low, high)


def read_run(reports: Path) -> Resamples:
    """The resamples of the evaluation in the folder `reports`; raises `ReportError`."""
    clips = read_table(reports / "clips.csv", ("uid", "condition"))
    resamples = read_resamples(reports)
    first = clips[clips["condition"] == next(iter(resamples))]
    return Resamples(tuple(first["uid"]), {(c, m): v for c, values in resamples.items() for m, v in values.items()})
