"""TPAVI: its losses (section `train.loss`) and its architecture (section `train.model`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qdformer.config.base import Positive, Section, Weight
from qdformer.config.methods.base import MethodSettings

Stages = Annotated[list[Annotated[int, Field(ge=1, le=4)]], Field(min_length=1, max_length=4)]
"""Stages of the backbone, 1 to 4 for strides 4 to 32."""


class TPAVILoss(Section):
    """Weights of the losses: `mask` of the pixels' cross-entropy, and `avm` (lambda) of the audio-visual matching.

    Lambda is 0 for S4 in the public code, and 0.5 for MS3 and AVSS. For MS3, the public code multiplies it with the sum
    over the 20 frames of a batch, which is 10 times the mean over the frames.
    """

    mask: Weight = 1.0
    avm: Weight = 0.5


class TPAVISettings(MethodSettings):
    """TPAVI's architecture; the defaults are the published values.

    `hidden_dim`: number of channels of the maps after ASPP and in the decoder. `tpavi_stages`: the stages, 1 to 4 for
    strides 4 to 32, in which the audio is fused. `audio_bias`: whether the layer that projects the audio features has a
    bias; in the public code it has one for S4 and MS3, and none for AVSS. `window`: number of frames in a row that are
    fused with each other's audio; longer clips are divided. It is 5 in the public code, also for AVSS's ten frames.
    """

    losses: ClassVar[type[Section]] = TPAVILoss
    title: ClassVar[str] = "TPAVI"
    paper: ClassVar[str] = "Zhou et al., ECCV 2022"
    name: Literal["tpavi"]
    hidden_dim: Annotated[int, Field(ge=16, multiple_of=16)] = 256
    tpavi_stages: Stages = [1, 2, 3, 4]
    audio_bias: bool = True
    window: Positive = 5

    @property
    def summary(self) -> str:
        stages = ", ".join(map(str, self.tpavi_stages))
        return f"TPAVI: hidden dimension {self.hidden_dim}, audio fused in stages {stages}"
