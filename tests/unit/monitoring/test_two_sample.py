"""The two-sample test: its statistic against the definition, its false alarms and its power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from qdformer.monitoring.two_sample import linear_kernel, mmd_test, rbf_kernel


def test_the_statistic_is_the_unbiased_mmd():
    """Against the definition, written out in loops."""
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(5, 3)), generator.normal(1, 1, size=(7, 3))
    both = np.concatenate([first, second])
    pairs = [np.linalg.norm(a - b) for i, a in enumerate(both) for b in both[:i]]

    def k(a, b):
        return np.exp(-(np.linalg.norm(a - b) ** 2) / (2 * np.median(pairs) ** 2))

    def within(group):
        return np.mean([k(a, b) for i, a in enumerate(group) for j, b in enumerate(group) if i != j])

    expected = within(first) + within(second) - 2 * np.mean([k(a, b) for a in first for b in second])
    kernel = rbf_kernel(both)
    assert mmd_test(kernel, 5, 10).statistic == pytest.approx(expected)
    assert np.diag(kernel) == pytest.approx(1)
    assert kernel == pytest.approx(kernel.T)


def test_the_linear_kernel_measures_the_distance_of_the_means():
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(4000, 2)), generator.normal([3, 4], 1, size=(4000, 2))
    statistic = mmd_test(linear_kernel(np.concatenate([first, second])), 4000, 1).statistic
    assert statistic == pytest.approx(25, rel=0.02)


@pytest.mark.parametrize("sizes", [(40, 10), (30, 30)])
@pytest.mark.parametrize("kernel", [rbf_kernel, linear_kernel])
def test_one_distribution_is_flagged_as_often_as_the_level_says(kernel, sizes):
    """400 draws at the level 0.05: a p-value that is too small or too large would fail."""
    generator = np.random.default_rng(1)
    values = [
        mmd_test(kernel(generator.exponential(size=(sum(sizes), 4))), sizes[0], 199, seed).p_value
        for seed in range(400)
    ]
    alarms = sum(value <= 0.05 for value in values)
    assert binomtest(alarms, len(values), 0.05).pvalue > 0.001
    assert np.mean(values) == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    "change",
    [lambda x: x + 0.8, lambda x: 2.5 * x, lambda x: np.where(np.arange(len(x))[:, None] % 3 == 0, x + 3, x)],
    ids=["shift", "spread", "a part"],
)
def test_a_changed_distribution_is_flagged(change):
    generator = np.random.default_rng(2)
    for seed in range(20):
        first, second = generator.normal(size=(100, 4)), change(generator.normal(size=(40, 4)))
        assert mmd_test(rbf_kernel(np.concatenate([first, second])), 100, 999, seed).p_value <= 0.005


def test_equal_vectors_never_differ():
    assert mmd_test(rbf_kernel(np.ones((20, 3))), 10, 99).p_value == 1
