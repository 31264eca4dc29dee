"""Section `features`: VGGish embeddings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qdformer.config.base import Section, Share


class Features(Section):
    """Stage `features`: one VGGish embedding per video frame.

    If a clip has fewer audio patches than frames, its last embedding is repeated (`repeat`, as in AVSBench S4) or zeros
    are appended (`zero`, as in AVSS). As published, patch i starts at 0.96 i s, so that it drifts by 0.04 s per frame
    against the video; with `center`, patch i is centered in the second of frame i.

    `pca`: path of the public file `vggish_pca_params-970ea276.pth`, whose SHA-256 must begin with `pca_sha256`. With it
    the embeddings are projected and quantized like AudioSet's; audio-visual segmentation methods do not do this.
    `bad_clips`: the stage fails if the share of clips with unusable sound is larger. Such clips are left out of
    training and evaluation.
    """

    short_clips: Literal["repeat", "zero"]
    center: bool
    pca: str | None
    pca_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
    bad_clips: Share
