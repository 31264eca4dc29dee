"""LVS: its losses (section `train.loss`) and its architecture (section `train.model`)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from qdformer.config.base import Positive, Rate, Section, Weight
from qdformer.config.methods.base import MethodSettings, strides_from


class LVSLoss(Section):
    """Weights of the losses: `contrast` of pictures and sounds, and `mask` of the pixels.

    LVS itself has no labels and `contrast` alone, that is, `mask` 0. AVSBench trained it in the settings of S4 and MS3,
    whose masks are labels; it has published neither code nor losses for this.
    """

    contrast: Weight = 1.0
    mask: Weight = 1.0


class LVSSettings(MethodSettings):
    """LVS's architecture; the defaults are the published values.

    `hidden_dim`: number of features of pictures and sounds. `positive`, `negative`: the similarities above and below
    which a position belongs to the source or to the background; positions between them have no part in the loss.
    `temperature`: how soft these thresholds are. `contrast_temperature`: that of the contrastive loss.
    """

    losses: ClassVar[type[Section]] = LVSLoss
    title: ClassVar[str] = "LVS"
    paper: ClassVar[str] = "Chen et al., CVPR 2021"
    name: Literal["lvs"]
    hidden_dim: Positive = 512
    positive: float = 0.65
    negative: float = 0.4
    temperature: Rate = 0.03
    contrast_temperature: Rate = 0.07

    @model_validator(mode="after")
    def _check_thresholds(self) -> LVSSettings:
        if not -1 <= self.negative <= self.positive <= 1:
            raise ValueError(
                f"negative ({self.negative}) must not be above positive ({self.positive}), both between -1 and 1"
            )
        return self

    @property
    def map_strides(self) -> tuple[int, ...]:
        return strides_from(16)

    @property
    def summary(self) -> str:
        return f"LVS: hidden dimension {self.hidden_dim}, thresholds {self.negative} and {self.positive}"
