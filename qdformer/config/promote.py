"""Section `promote`: when a new version of the model takes the place of the champion."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qdformer.config.base import Positive, Section, Weight

Score = Literal[
    "miou_dataset", "miou_per_frame", "avsbench_j", "avsbench_f", "davis_j", "davis_f", "davis_jf"
]  # evaluation.result.SCORES


class Promote(Section):
    """The gates between a challenger and the alias `champion`, all on the test split and evaluated by the same code.

    The challenger must be better in `metric` on clean sound: the lower end of the paired bootstrap interval of the
    difference, of probability `confidence`, must exceed `margin`. And it must not be worse than these limits: `metric`
    falls by at most `max_drop[CONDITION]` under each condition named there, the predicted area under a control without
    a visible source (such as `silence`) rises by at most `max_false_positives[CONTROL]`, a share of the pixels, and the
    IoU of every class with at least `min_class_clips` test clips falls by at most `max_class_drop`.

    `drift`: whether clips that arrived since the champion's training, and that differ from its training clips in sound,
    estimated SNR, pictures or the mix of classes, only lead to a warning or stop the retraining. They differ if a
    permutation test gives a p-value below `drift_p_value`, the probability of a false alarm over all four aspects.
    """

    metric: Score
    margin: Weight
    confidence: Annotated[float, Field(gt=0.5, lt=1)]
    max_drop: dict[str, Weight]
    max_false_positives: dict[str, Weight]
    max_class_drop: Weight
    min_class_clips: Positive
    drift: Literal["warn", "stop"]
    drift_p_value: Annotated[float, Field(ge=0.0001, lt=1)]
