"""Section `noise`: background noises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Count, Positive, Section, Split


class Noise(Section):
    """Stage `noise`: the recordings that the stage `mix` adds to the clips.

    `source`: `dataset` takes the sounds that the data set marks as noise, `audioset` segments of AudioSet, and `none`
    no noises, so that only the condition `clean` is possible. The other keys are for `audioset`.

    Candidates are the segments in the official lists `segments` that have one of `labels` or of its descendants in the
    ontology, and no label that a class of the data set can have. Labels are names or ids in `ontology`, the published
    ontology.json. For each split, `count` segments are drawn by `seed`; they are read from the clips in `folder` and,
    if `fetch` is true, downloaded from YouTube. A split with fewer than `minimum` usable noises is an error.
    """

    source: Literal["dataset", "audioset", "none"]
    segments: list[str]
    ontology: str | None
    folder: str | None
    fetch: bool
    labels: Annotated[list[str], Field(min_length=1)]
    count: Annotated[dict[Split, Positive], Field(min_length=1)]
    minimum: Positive
    seed: Count

    @model_validator(mode="after")
    def _audioset_is_named(self) -> Noise:
        if self.source == "audioset" and not (self.segments and self.ontology and (self.folder or self.fetch)):
            raise ValueError("source: audioset needs segments, ontology, and folder or fetch: true")
        if self.minimum > min(self.count.values()):
            raise ValueError(f"minimum ({self.minimum}) must not be above the counts ({min(self.count.values())})")
        return self
