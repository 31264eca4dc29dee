"""Section `separate`: separation of sounds in the time domain."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Count, Positive, Rate, Section


class Network(Section):
    """The size of Conv-TasNet, under the names of `torchaudio.models.ConvTasNet`.

    torchaudio's `conv_tasnet_base` has 16, 512, 3, 128, 512, 8 and 3.
    """

    enc_kernel_size: Annotated[int, Field(ge=2, multiple_of=2)]
    enc_num_feats: Annotated[int, Field(ge=4, multiple_of=4)]
    msk_kernel_size: Positive
    msk_num_feats: Positive
    msk_num_hidden_feats: Positive
    msk_num_layers: Positive
    msk_num_stacks: Positive


class Separate(Section):
    """Stage `separate`: Conv-TasNet, which divides a sound into `sources` tracks. Only rows of a sweep with
    `train.model.separate` run it.

    `trained_here` trains it for `steps` steps of `batch_size` mixtures of `seconds` seconds, made of the training
    split's single sounds. `published` takes the file of torchaudio's bundle CONVTASNET_BASE_LIBRI2MIX from
    `published_source` (a path or a URL), whose SHA-256 must begin with `published_sha256`; the bundle separates
    speech of 8 kHz into 2 sources, and the other keys but `sources` are ignored.
    """

    weights: Literal["trained_here", "published"]
    published_source: str | None
    published_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None
    sources: Annotated[int, Field(ge=2, le=8)]
    network: Network
    steps: Positive
    batch_size: Positive
    seconds: Rate
    learning_rate: Rate
    seed: Count

    @model_validator(mode="after")
    def _published_is_named(self) -> Separate:
        if self.weights == "published" and not (self.published_source and self.published_sha256):
            raise ValueError("weights: published needs published_source and published_sha256")
        return self
