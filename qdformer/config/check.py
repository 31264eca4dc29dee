"""Section `check`: the checks of the data set."""

from __future__ import annotations

from typing import Literal

from qdformer.config.base import Section, Share


class Check(Section):
    """Stage `check`: what is wrong with the data set.

    A connected component of a class that covers less than the share `speck` of its label map is reported; 0.0003 is
    one pixel of masks at stride 4 of a picture of 224 x 224. Errors of the kinds in `tolerate` are reported as
    warnings and stop nothing: the later stages pad or repeat the features of a short sound, and those of a silent one
    are as good as any.
    """

    speck: Share
    tolerate: list[Literal["audio-length", "silent-audio"]]
