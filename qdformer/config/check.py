"""Section `check`: the checks of the data set."""

from __future__ import annotations

from typing import Literal

from qdformer.config.base import Section, Share


class Check(Section):
    """Stage `check`: validation of the data set.

    A connected component of a class that covers less than the share `min_component_area` of its label map is reported.
    0.0003 is one pixel of a mask at stride 4 for a frame of 224 x 224 pixels. Errors of the kinds in `tolerate` become
    warnings and do not stop the pipeline: later stages pad or repeat the features of a short recording, and silent
    recordings have valid features.
    """

    min_component_area: Share
    tolerate: list[Literal["audio-length", "silent-audio"]]
