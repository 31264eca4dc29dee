"""The comparison of trainings: mean over seeds, paired differences, and what the hierarchical bootstrap covers."""

import numpy as np
import pytest

from qdformer.reporting.resamples import Group, Resamples, hierarchical_bootstrap

KEY = ("clean", "miou_dataset")


def run(values, uids=("a", "b"), key=KEY):
    return Resamples(uids, {key: np.asarray(values, np.float64)})


def test_without_spread_between_seeds_the_interval_is_that_over_clips():
    clips = np.random.default_rng(0).normal(0.4, 0.05, 1001)
    one, three = (hierarchical_bootstrap(np.tile(clips, (seeds, 1))) for seeds in (1, 3))
    low, high = np.quantile(clips[1:], [0.025, 0.975])
    for estimate in (one, three):
        assert (estimate.value, estimate.low, estimate.high) == pytest.approx((clips[0], low, high))


def test_without_spread_over_clips_the_interval_is_that_over_seeds():
    values = np.tile(np.array([0.2, 0.3, 0.7])[:, None], (1, 1001))
    estimate = hierarchical_bootstrap(values)
    assert estimate.value == pytest.approx(0.4)
    assert (estimate.low, estimate.high) == pytest.approx((0.2, 0.7))  # one seed three times has probability 1 / 27
    means = [sum(triple) / 3 for triple in np.stack(np.meshgrid(*[[0.2, 0.3, 0.7]] * 3), -1).reshape(-1, 3)]
    drawn = np.random.default_rng(0).integers(0, 3, size=(1000, 3))
    assert values[drawn, 1].mean(axis=1).std() == pytest.approx(np.std(means), rel=0.1)


def test_a_difference_is_paired_by_seed_and_clip():
    random = np.random.default_rng(1)
    common = random.normal(0.5, 0.1, (3, 1001))  # what is hard for both: clips and seeds
    full = Group({seed: run(common[seed]) for seed in range(3)})
    other = Group({seed: run(common[seed] - 0.05) for seed in range(3)})
    difference = other.difference(full, *KEY)
    assert (difference.value, difference.low, difference.high) == pytest.approx((-0.05,) * 3)
    assert full.estimate(*KEY).high - full.estimate(*KEY).low > 0.1


def test_a_difference_is_over_the_seeds_that_both_rows_have():
    full = Group({seed: run(np.full(11, 0.5 + seed)) for seed in (0, 1, 2)})
    other = Group({seed: run(np.full(11, 0.4 + seed)) for seed in (1, 2, 3)})
    assert other.difference(full, *KEY).value == pytest.approx(-0.1)
    assert other.estimate(*KEY).value == pytest.approx(2.4)
    assert Group({7: run(np.full(11, 0.4))}).difference(full, *KEY) is None


def test_trainings_on_other_clips_are_not_compared():
    full = Group({0: run(np.full(11, 0.5))})
    assert Group({0: run(np.full(11, 0.4), uids=("a", "c"))}).difference(full, *KEY) is None


def test_an_undefined_metric_stays_undefined():
    group = Group({0: run(np.full(11, 0.5)), 1: run(np.full(11, 0.5), key=("clean", "davis_jf"))})
    estimate = group.estimate(*KEY)
    assert np.isnan([estimate.value, estimate.low, estimate.high]).all()
    assert np.isnan(group.estimate("snr0", "code_nmi").value)


def test_the_interval_covers_the_truth_of_new_clips():
    """The mean over seeds and clips of simulated trainings, each with many seeds, lies in 95 % of the intervals."""
    random, hits = np.random.default_rng(2), 0
    for trial in range(200):
        scores = 0.5 + random.normal(0, 0.05, (20, 1)) + random.normal(0, 0.2, (1, 100))  # seeds x clips
        drawn = random.integers(0, 100, size=(400, 100))
        resampled = np.concatenate([scores.mean(axis=1)[:, None], scores[:, drawn].mean(axis=2)], axis=1)
        estimate = hierarchical_bootstrap(resampled, seed=trial)
        hits += estimate.low <= 0.5 <= estimate.high
    assert 0.9 <= hits / 200 <= 0.98
