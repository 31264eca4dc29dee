"""Section `download`: the data set."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Count, Positive, Section

PUBLISHED = ("s4", "ms3", "avss")
"""Data sets that the user provides; the others are generated."""


class Clips(Section):
    """Number of clips that are generated for each split (`toy` and `stamps`)."""

    train: Positive
    val: Positive
    test: Positive


class Download(Section):
    """Stage `download`: the data set.

    `toy` and `stamps` are generated from `seed` in the layout of AVSBench-Semantic: clips of `frames` seconds with one
    frame per second of `image_size` x `image_size` pixels.

    `s4`, `ms3` and `avss` are the published AVSBench data sets, read from `source`: folders, archives or URLs. `sha256`
    is empty or holds the digest of each source, in the same order. Some videos have clips in several of the published
    splits; `youtube_disjoint` leaves out clips so that no video is in two splits (rule:
    `qdformer.data.readers.avsbench.youtube_disjoint`).
    """

    dataset: Literal["toy", "stamps", "s4", "ms3", "avss"]
    source: list[str] = []
    sha256: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = []
    split: Literal["published", "youtube_disjoint"] = "published"
    seed: Count | None = None
    clips: Clips | None = None
    frames: Annotated[int, Field(ge=1, le=10)] | None = None
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] | None = None

    @property
    def split_rule(self) -> str:
        """How the clips were divided into splits: `published`, `youtube_disjoint` or, if composed here, `composed`."""
        return self.split if self.dataset in PUBLISHED else "composed"

    @model_validator(mode="after")
    def _fits_the_data_set(self) -> Download:
        composed = {name: getattr(self, name) for name in ("seed", "clips", "frames", "image_size")}
        if self.dataset in PUBLISHED:
            if given := [name for name, value in composed.items() if value is not None]:
                raise ValueError(f"dataset: {self.dataset} is not composed; {', '.join(given)} must be null")
            if self.sha256 and len(self.sha256) != len(self.source):
                raise ValueError(
                    f"sha256 has {len(self.sha256)} digests; expected {len(self.source)}, as source, or []"
                )
        elif missing := [name for name, value in composed.items() if value is None]:
            raise ValueError(f"dataset: {self.dataset} needs {', '.join(missing)}")
        elif self.source or self.sha256 or self.split != "published":
            raise ValueError(f"dataset: {self.dataset} is composed; source, sha256 and split are for AVSBench")
        return self
