"""Scores of audio-visual segmentation, each under the name and by the definition of its own protocol.

The protocols disagree, most of all about frames in which nothing sounds; every module says what it
does with them. Functions take one clip's frames as NumPy arrays. The accumulators take one clip at
a time, keep a few kilobytes per clip and no pixels, and give the figures of any resample of the
clips, the whole set being one of them.
"""

from __future__ import annotations

from qdformer.metrics.avsbench import AVSBenchScores, f_curves, jaccard
from qdformer.metrics.bootstrap import interval, resamples
from qdformer.metrics.davis import DavisScores, boundary_f, region_j
from qdformer.metrics.semantic import FrameAreas, SemanticScores, frame_areas

__all__ = [
    "AVSBenchScores",
    "DavisScores",
    "FrameAreas",
    "SemanticScores",
    "boundary_f",
    "f_curves",
    "frame_areas",
    "interval",
    "jaccard",
    "region_j",
    "resamples",
]
