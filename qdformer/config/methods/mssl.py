"""MSSL: its losses (section `train.loss`) and its architecture (section `train.model`)."""

from __future__ import annotations

from typing import ClassVar, Literal

from qdformer.config.base import Positive, Rate, Section, Share, Weight
from qdformer.config.methods.base import MethodSettings, strides_from


class MSSLLoss(Section):
    """Weights of the losses: `audio_cls` and `visual_cls` of the classes, `correspondence` of pictures and sounds, and
    in the second stage `align` of their classes, and `mask` of the pixels.

    `margin`: distance up to which features of different frames or classes are pushed apart. `present`: the probability
    above which a class takes part in `align`.

    MSSL itself has no masks, that is, `mask` 0, and its classes are pseudo-labels. AVSBench trained it in the settings
    of S4 and MS3, whose masks are labels; it has published neither code nor losses for this.
    """

    audio_cls: Weight = 1.0
    visual_cls: Weight = 1.0
    correspondence: Weight = 1.0
    align: Weight = 1.0
    mask: Weight = 1.0
    margin: Rate = 1.4
    present: Share = 0.3


class MSSLSettings(MethodSettings):
    """MSSL's architecture; the defaults are the published values.

    `hidden_dim`: number of features of pictures and sounds; `align_dim`: those in which their classes are aligned.
    `stage_one`: share of the training that is the first stage. `threshold`: the similarity above which a position
    belongs to the source, and `temperature` how soft this threshold is.
    """

    losses: ClassVar[type[Section]] = MSSLLoss
    title: ClassVar[str] = "MSSL"
    paper: ClassVar[str] = "Qian et al., ECCV 2020"
    name: Literal["mssl"]
    hidden_dim: Positive = 512
    align_dim: Positive = 128
    stage_one: Share = 0.5
    threshold: float = 0.5
    temperature: Rate = 0.1

    @property
    def map_strides(self) -> tuple[int, ...]:
        return strides_from(16)

    @property
    def summary(self) -> str:
        return f"MSSL: hidden dimension {self.hidden_dim}, the first {self.stage_one:.0%} of the training are stage one"
