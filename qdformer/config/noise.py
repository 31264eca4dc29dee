"""Section `noise`: the background noises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Count, Positive, Section, Split


class Noise(Section):
    """Stage `noise`: the recordings that `mix` lays under the clips.

    `dataset` takes the data set's own sounds of the role noise. `audioset` takes segments of AudioSet: from the
    official lists `segments`, those with one of `labels` (names or ids of `ontology`, the published ontology.json)
    or what lies below it, and with no label that the data set's classes can sound as; `count` for each split,
    drawn by `seed`, from the clips in `folder` and, where `fetch` allows it, from YouTube. A split that gets
    fewer than `minimum` is an error. `none` takes none: no condition but the clean one is then possible.
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
