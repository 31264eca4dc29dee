"""Two-sample test: do two sets of vectors come from one distribution?

The statistic is the unbiased estimate of the squared maximum mean discrepancy (Gretton et al., A Kernel Two-Sample
Test, JMLR 2012, Eq. 3):

    MMD² = 1/(m(m-1)) Σ_{i≠j} k(x_i, x_j) + 1/(n(n-1)) Σ_{i≠j} k(y_i, y_j) - 2/(mn) Σ_{i,j} k(x_i, y_j)

Its p-value is that of a permutation test, which is exact for any sample size: the kernel is chosen from both sets
together, so that under the null hypothesis every assignment of the vectors to the sets is equally likely.

Shapes: m, n vectors in the two sets, N = m + n, D values in a vector, P permutations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import pdist, squareform

_CHUNK = 1000
"""Permutations that are evaluated together: 8 MB of memory for each 1000 vectors."""
_ROUNDING = 1e-12
"""A permutation of the same vectors may differ from the observed statistic by this much."""


@dataclass(frozen=True)
class TwoSample:
    """The statistic and the p-value of a test; the smallest p-value is 1 / (P + 1)."""

    statistic: float
    p_value: float


def rbf_kernel(vectors_ND: np.ndarray) -> np.ndarray:
    """exp(-|a - b|² / (2 s²)) of all pairs [N, N], with the median of their distances as s."""
    distances = pdist(np.asarray(vectors_ND, np.float64))
    different = distances[distances > 0]
    scale = float(np.median(different)) if different.size else 1.0
    return squareform(np.exp(-(distances**2) / (2 * scale**2))) + np.eye(len(vectors_ND))


def linear_kernel(vectors_ND: np.ndarray) -> np.ndarray:
    """The inner products of all pairs [N, N]; MMD² is then the squared distance of the two means."""
    vectors = np.asarray(vectors_ND, np.float64)
    return vectors @ vectors.T


def mmd_test(kernel_NN: np.ndarray, first: int, permutations: int, seed: int = 0) -> TwoSample:
    """Test the first `first` vectors against the others, given the kernel of all of them.

    Both sets need at least two vectors.
    """
    count = len(kernel_NN)
    assert 2 <= first <= count - 2, "the unbiased estimate needs two vectors on each side"
    kernel = kernel_NN - np.diag(np.diag(kernel_NN))
    observed = np.zeros((count, 1))
    observed[:first] = 1
    statistic = float(_mmd(kernel, observed, first)[0])
    generator, at_least, left = np.random.default_rng(seed), 0, permutations
    while left:
        size = min(left, _CHUNK)
        shuffled = generator.permuted(np.broadcast_to(observed, (count, size)), axis=0)
        at_least += int((_mmd(kernel, shuffled, first) >= statistic - _ROUNDING).sum())
        left -= size
    return TwoSample(statistic, (1 + at_least) / (1 + permutations))


def _mmd(kernel_NN: np.ndarray, member_NP: np.ndarray, first: int) -> np.ndarray:
    """MMD² [P] for each assignment; `kernel_NN` has a zero diagonal, `member_NP` is 1 for the first set."""
    second = len(kernel_NN) - first
    within_first = (member_NP * (kernel_NN @ member_NP)).sum(axis=0)
    between = kernel_NN.sum(axis=0) @ member_NP - within_first
    within_second = kernel_NN.sum() - within_first - 2 * between
    return (
        within_first / (first * (first - 1)) + within_second / (second * (second - 1)) - 2 * between / (first * second)
    )
