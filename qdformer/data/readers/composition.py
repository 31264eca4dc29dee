"""The settings of a composed data set. They are optional in the section `download`: published sets have none."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from qdformer.config.download import Clips, Download


class Composition(NamedTuple):
    """Seed, number of clips in each split, frames per clip and side of the square frames in pixels."""

    seed: int
    clips: Clips
    frames: int
    image_size: int


def composition_of(download: Download) -> Composition:
    """The settings of a composed data set; the section `download` has validated that they are given."""
    seed, clips, frames, size = download.seed, download.clips, download.frames, download.image_size
    assert seed is not None and clips is not None and frames is not None and size is not None
    return Composition(seed, clips, frames, size)
