"""Section `pretrain`: weights of VGGish."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Count, Positive, Rate, Section


class Pretrain(Section):
    """Stage `pretrain`: the source of VGGish's weights.

    `official` takes the file of the public PyTorch port from `official_source` (a path or a URL), whose SHA-256 must
    begin with `official_sha256`. `pretrained_here` trains the same network on the training split of the sounds for
    `steps` steps of `batch_size` patches. With the `teacher` `yamnet` it learns YAMNet's AudioSet scores and embedding,
    with `labels` only the class labels.
    """

    weights: Literal["official", "pretrained_here"]
    official_source: str | None
    official_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None
    teacher: Literal["yamnet", "labels"]
    steps: Positive
    batch_size: Positive
    learning_rate: Rate
    seed: Count

    @model_validator(mode="after")
    def _official_is_named(self) -> Pretrain:
        if self.weights == "official" and not (self.official_source and self.official_sha256):
            raise ValueError("weights: official needs official_source and official_sha256")
        return self
