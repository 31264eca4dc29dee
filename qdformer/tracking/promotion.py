"""The comparison of a challenger with the champion: gates, and the verdict.

Shapes: R bootstrap resamples of the test clips; entry 0 of every array [1 + R] is the metric of all clips.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qdformer.metrics.bootstrap import confidence_interval
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from qdformer.config.promote import Promote

AREA = "predicted_area"


class PromotionError(InputError):
    """Two evaluations cannot be compared; the message says what is missing."""


@dataclass(frozen=True)
class Scorecard:
    """What an evaluation of one version says, as far as the gates need it.

    `resamples` maps each condition to its metrics, float64 [1 + R]; `class_iou` each class to its IoU on clean sound
    (NaN if it never occurs), `class_clips` to the number of its test clips.
    """

    resamples: Mapping[str, Mapping[str, np.ndarray]]
    class_iou: Mapping[str, float]
    class_clips: Mapping[str, int]

    def metric(self, condition: str, name: str) -> np.ndarray:
        try:
            return self.resamples[condition][name]
        except KeyError:
            raise PromotionError(f"{condition}/{name}: not evaluated; expected it for the gates of `promote`") from None


@dataclass(frozen=True)
class Gate:
    """One condition of a promotion. `low` and `high`: the paired interval of `value`, if it has one."""

    name: str
    value: float
    low: float | None
    high: float | None
    limit: str
    passed: bool

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+.4f}, {self.high:+.4f}]"
        return (
            f"{self.name} {self.value:+.4f}{interval}, expected {self.limit}: {'passed' if self.passed else 'failed'}"
        )


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger becomes the champion, by which gates, and one line that says why."""

    promoted: bool
    gates: tuple[Gate, ...]
    reason: str


def compare(champion: Scorecard, challenger: Scorecard, rules: Promote) -> Verdict:
    """Compare two evaluations of the same test clips with the same bootstrap seed.

    Raises `PromotionError` if a metric that a gate needs is missing, or if the numbers of resamples differ.
    """
    gates = [_better(champion, challenger, rules)]
    for condition, limit in rules.max_drop.items():
        gates.append(_bounded(champion, challenger, condition, rules.metric, rules.confidence, -limit))
    for control, limit in rules.max_false_positives.items():
        gates.append(_bounded(champion, challenger, control, AREA, rules.confidence, limit))
    gates.append(_classes(champion, challenger, rules))
    failed = [gate for gate in gates if not gate.passed]
    return Verdict(not failed, tuple(gates), "; ".join(map(str, failed or gates[:1])))


def _difference(champion: Scorecard, challenger: Scorecard, condition: str, metric: str) -> np.ndarray:
    before, after = champion.metric(condition, metric), challenger.metric(condition, metric)
    if before.shape != after.shape:
        raise PromotionError(
            f"{condition}/{metric}: {len(before) - 1} and {len(after) - 1} resamples; expected evaluations of the same "
            "clips with the same evaluate.bootstrap"
        )
    return after - before


def _better(champion: Scorecard, challenger: Scorecard, rules: Promote) -> Gate:
    difference = _difference(champion, challenger, "clean", rules.metric)
    low, high = confidence_interval(difference[1:], rules.confidence)
    passed = bool(low > rules.margin)  # not for NaN
    limit = f"an interval above {rules.margin:+.4f}"
    return Gate(f"clean/{rules.metric}", float(difference[0]), low, high, limit, passed)


def _bounded(
    champion: Scorecard, challenger: Scorecard, condition: str, metric: str, confidence: float, limit: float
) -> Gate:
    """A change that is at least `limit` if that is negative or 0 (a score), else at most `limit` (a predicted area)."""
    difference = _difference(champion, challenger, condition, metric)
    value = float(difference[0])
    is_area = metric == AREA
    passed = value <= limit if is_area else value >= limit
    expected = f"at {'most' if is_area else 'least'} {limit:+.4f}"
    return Gate(f"{condition}/{metric}", value, *confidence_interval(difference[1:], confidence), expected, passed)


def _classes(champion: Scorecard, challenger: Scorecard, rules: Promote) -> Gate:
    """The class that lost most, among those with enough test clips."""
    changes = {
        name: iou - champion.class_iou[name]
        for name, iou in challenger.class_iou.items()
        if challenger.class_clips.get(name, 0) >= rules.min_class_clips and name in champion.class_iou
    }
    changes = {name: change for name, change in changes.items() if not np.isnan(change)}
    limit = f"at least {-rules.max_class_drop:+.4f}"
    if not changes:
        return Gate(f"classes with {rules.min_class_clips} clips: none", 0.0, None, None, limit, True)
    worst = min(changes, key=lambda name: changes[name])
    passed = changes[worst] >= -rules.max_class_drop
    return Gate(f"class {worst} (the worst of {len(changes)})", changes[worst], None, None, limit, passed)
