"""Section `features`: the VGGish embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qdformer.config.base import Section, Share


class Features(Section):
    """Stage `features`: one VGGish embedding per video frame.

    A clip with fewer patches than frames repeats its last patch (`repeat`, as AVSBench S4 does) or
    is padded with zeros (`zero`, as AVSS does). As published, patch i begins at 0.96 i s and drifts
    0.04 s a frame against the video; with `center` it is taken around the middle of frame i's second.

    `pca` is a path of the public `vggish_pca_params-970ea276.pth`, whose SHA-256 must begin with
    `pca_sha256`; with it the embeddings are projected and quantised as AudioSet's were, which
    audio-visual segmentation methods leave out. `bad_clips` is the share of clips whose sound may be
    unusable before the stage fails; those clips are left out of training and evaluation.
    """

    short_clips: Literal["repeat", "zero"]
    center: bool
    pca: str | None
    pca_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
    bad_clips: Share
