"""Drift: whether new clips differ from the champion's training clips in sound, noise, pictures or classes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from qdformer.monitoring.profile import Profile
from qdformer.monitoring.two_sample import linear_kernel, mmd_test, rbf_kernel

MIN_CLIPS = 8
"""Fewer new clips are not tested: such a test would find only very large differences."""
_SHOWN = 3


@dataclass(frozen=True)
class Shift:
    """The test of one aspect. `p_value` is corrected for the number of aspects (Bonferroni)."""

    aspect: str
    mmd2: float
    p_value: float
    flagged: bool
    detail: str = ""

    def __str__(self) -> str:
        outcome = "differs" if self.flagged else "no difference found"
        detail = f"; {self.detail}" if self.detail else ""
        return f"{self.aspect}: MMD² {self.mmd2:+.4f}, p {self.p_value:.2g}, {outcome}{detail}"


@dataclass(frozen=True)
class Drift:
    """The tests of all aspects, or the reason why they cannot be made."""

    new: int
    reference: int
    shifts: tuple[Shift, ...] = ()
    not_measured: str = ""
    complete: bool = True
    """Everything was measured that can be; False if what is needed to compare is missing."""

    @property
    def flagged(self) -> bool:
        return any(shift.flagged for shift in self.shifts)

    def __str__(self) -> str:
        parts = [*map(str, self.shifts), *filter(None, [self.not_measured and f"not measured: {self.not_measured}"])]
        return f"{self.new} new clips against {self.reference} training clips of the champion: {' | '.join(parts)}"


def measure_drift(reference: Profile, new: Profile, p_value: float, seed: int = 0) -> Drift:
    """Compare two profiles. An aspect is flagged if its corrected p-value is below `p_value`.

    If nothing differs, the probability that any aspect is flagged is at most `p_value`.
    """
    sizes = len(new.uids), len(reference.uids)
    if len(new) < MIN_CLIPS:
        return Drift(*sizes, not_measured=too_few(len(new)))
    if len(reference) < MIN_CLIPS:
        return Drift(*sizes, not_measured=too_few(len(reference), "training clips of the champion"))
    tests: list[tuple[str, np.ndarray, np.ndarray, Callable[[np.ndarray], np.ndarray], str]] = []
    missing = []
    if reference.weights_sha256 == new.weights_sha256:
        tests.append(("sound", reference.audio, new.audio, rbf_kernel, ""))
    else:
        missing.append("sound, because VGGish has changed since the champion's training")
    tests.append(("pictures", reference.pictures, new.pictures, rbf_kernel, ""))
    if np.isfinite(reference.snr_db).all() and np.isfinite(new.snr_db).all():
        before_db, after_db = np.median(reference.snr_db), np.median(new.snr_db)
        detail = f"median {after_db:.0f} dB instead of {before_db:.0f} dB"
        tests.append(("estimated SNR", reference.snr_db, new.snr_db, rbf_kernel, detail))
    else:
        missing.append("the estimated SNR, because not all clips have samples of their sound")
    if reference.class_names == new.class_names:
        detail = _largest_changes(reference, new)
        tests.append(("class mix", reference.classes, new.classes, linear_kernel, detail))
    else:
        missing.append("the class mix, because the classes have changed since the champion's training")
    permutations = math.ceil(10 * len(tests) / p_value)  # the smallest possible p-value is a tenth of the limit
    shifts = []
    for aspect, before, after, kernel, detail in tests:
        test = mmd_test(kernel(np.concatenate([before, after])), len(before), permutations, seed)
        corrected = min(1.0, len(tests) * test.p_value)
        flagged = corrected < p_value
        shifts.append(Shift(aspect, test.statistic, corrected, flagged, detail if flagged else ""))
    return Drift(*sizes, tuple(shifts), "; ".join(missing), not missing)


def too_few(count: int, what: str = "new clips") -> str:
    """The reason why so few clips are not tested."""
    return f"{count} {what}, at least {MIN_CLIPS} are needed"


def _largest_changes(reference: Profile, new: Profile) -> str:
    """The classes whose share of the clips changed most."""
    before, after = reference.classes.mean(axis=0), new.classes.mean(axis=0)
    order = np.argsort(-np.abs(after - before), kind="stable")[:_SHOWN]
    return ", ".join(f"{new.class_names[i]} in {after[i]:.0%} of the clips instead of {before[i]:.0%}" for i in order)
