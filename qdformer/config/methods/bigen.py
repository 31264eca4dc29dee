"""Bi-Gen: its losses (section `train.loss`) and its architecture (section `train.model`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qdformer.config.base import Positive, Section, Weight
from qdformer.config.methods.base import MethodSettings
from qdformer.config.methods.tpavi import Stages


class BiGenLoss(Section):
    """Weights of the losses: `mask` of the pixels, `audio` of the reconstructed audio features, and `avm` of TPAVI's
    audio-visual matching.

    `masks_from`: the masks from which the audio features are reconstructed. In the public code they are the predicted
    ones for S4, where most frames have no ground truth, and the true ones for MS3. `avm` is 0 for S4 in the public
    code; for MS3 it is 0.5, multiplied with the sum over the 60 frames of a batch.
    """

    mask: Weight = 1.0
    audio: Weight = 1.0
    avm: Weight = 0.0
    masks_from: Literal["prediction", "truth"] = "prediction"


class BiGenSettings(MethodSettings):
    """Bi-Gen's architecture; the defaults are the published values.

    `hidden_dim`: number of channels of the maps. `fusion`: how the audio acts on the maps of the four stages; the
    public code has both ways, and `correlation` as its default. `window`: number of frames in a row that `tpavi` fuses.
    `motion_stages`: the stages, 1 to 4 for strides 4 to 32, whose maps are compared between frames.
    `projection_size`: side of the map from which the audio features are reconstructed.
    """

    losses: ClassVar[type[Section]] = BiGenLoss
    title: ClassVar[str] = "Bi-Gen"
    paper: ClassVar[str] = "Hao et al., AAAI 2024"
    name: Literal["bigen"]
    hidden_dim: Annotated[int, Field(ge=16, multiple_of=16)] = 128
    fusion: Literal["correlation", "tpavi"] = "correlation"
    window: Positive = 5
    motion_stages: Stages = [1, 2, 3, 4]
    projection_size: Positive = 7

    @property
    def summary(self) -> str:
        stages = ", ".join(map(str, self.motion_stages))
        return f"Bi-Gen: hidden dimension {self.hidden_dim}, fusion by {self.fusion}, motion in stages {stages}"
