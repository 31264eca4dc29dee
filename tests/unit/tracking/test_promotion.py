"""The gates between challenger and champion."""

from __future__ import annotations

import numpy as np
import pytest

from qdformer.config.promote import Promote
from qdformer.tracking.promotion import PromotionError, Scorecard, compare

RULES = Promote(
    metric="miou_dataset",
    margin=0.0,
    confidence=0.95,
    max_drop={"snr0": 0.02},
    max_false_positives={"silence": 0.005},
    max_class_drop=0.1,
    min_class_clips=5,
    drift="warn",
    drift_p_value=0.01,
)


def card(clean=0.4, noise=0.01, snr0=0.3, silence=0.002, dog=0.5, cat=0.5, seed=0):
    """A scorecard whose resamples vary together with every other one (by the clips) and `noise` on their own."""
    shared = np.random.default_rng(99).normal(0, 0.05, 501)
    own = np.random.default_rng(seed).normal(0, noise, 501)
    shared[0] = own[0] = 0

    def values(value):
        return value + shared + own

    resamples = {
        "clean": {"miou_dataset": values(clean)},
        "snr0": {"miou_dataset": values(snr0)},
        "silence": {"predicted_area": values(silence)},
    }
    return Scorecard(resamples, {"dog": dog, "cat": cat}, {"dog": 9, "cat": 4})


def test_a_difference_above_its_paired_interval_is_promoted():
    """The spread over clips (0.05) is larger than the difference (0.04), but both versions share it."""
    verdict = compare(card(), card(clean=0.44, seed=1), RULES)
    assert verdict.promoted and all(gate.passed for gate in verdict.gates)
    better = verdict.gates[0]
    assert better.value == pytest.approx(0.04) and 0 < better.low < 0.04 < better.high < 0.08
    assert verdict.reason.startswith("clean/miou_dataset +0.0400 [+0.0")


@pytest.mark.parametrize(
    ("changes", "rules", "failed"),
    [
        ({"clean": 0.41}, {}, "clean/miou_dataset +0.0100"),  # within the interval
        ({"clean": 0.44}, {"margin": 0.03}, "clean/miou_dataset +0.0400"),  # not by the margin
        ({"clean": 0.5, "snr0": 0.27}, {}, "snr0/miou_dataset -0.0300"),
        ({"clean": 0.5, "silence": 0.01}, {}, "silence/predicted_area +0.0080"),
        ({"clean": 0.5, "dog": 0.3}, {}, "class dog (the worst of 1) -0.2000"),
    ],
)
def test_each_gate_refuses_alone(changes, rules, failed):
    verdict = compare(card(), card(seed=1, **changes), RULES.model_copy(update=rules))
    assert not verdict.promoted
    assert [str(gate) for gate in verdict.gates if not gate.passed] == [verdict.reason]
    assert verdict.reason.startswith(failed) and verdict.reason.endswith(": failed")


def test_a_class_with_few_clips_does_not_decide():
    assert compare(card(), card(clean=0.5, cat=0.0, seed=1), RULES).promoted
    none = compare(card(), card(clean=0.5, dog=float("nan"), seed=1), RULES)
    assert none.promoted and "none" in none.gates[-1].name


def test_an_undefined_difference_is_no_improvement():
    undefined = Scorecard({"clean": {"miou_dataset": np.full(501, np.nan)}}, {}, {})
    rules = RULES.model_copy(update={"max_drop": {}, "max_false_positives": {}})
    assert not compare(card(), undefined, rules).promoted


def test_evaluations_that_do_not_fit_are_not_compared():
    with pytest.raises(PromotionError, match="snr5/miou_dataset: not evaluated"):
        compare(card(), card(), RULES.model_copy(update={"max_drop": {"snr5": 0.1}}))
    short = Scorecard({"clean": {"miou_dataset": np.zeros(11)}}, {}, {})
    with pytest.raises(PromotionError, match="500 and 10 resamples"):
        compare(card(), short, RULES)
