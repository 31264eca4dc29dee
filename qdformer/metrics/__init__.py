"""Scores of audio-visual segmentation, each under the name and by the definition of its own protocol.

The protocols disagree, most of all about frames in which nothing sounds; every module says what it
does with them. The modules `avsbench`, `semantic` and `davis` hold the published functions, on tensors.
The accumulators take one clip at a time as NumPy arrays, keep a few kilobytes per clip and no pixels, join over
the processes of a distributed evaluation, and give the figures of any resample of the clips, the whole set being
one of them.
"""

from __future__ import annotations

from qdformer.metrics import avsbench, davis, semantic
from qdformer.metrics.avsbench import AVSBenchScores
from qdformer.metrics.bootstrap import bootstrap_indices, confidence_interval
from qdformer.metrics.clips import MetricError
from qdformer.metrics.davis import DavisScores
from qdformer.metrics.robustness import PredictedArea, g_miou
from qdformer.metrics.semantic import SemanticScores

__all__ = [
    "AVSBenchScores",
    "DavisScores",
    "PredictedArea",
    "MetricError",
    "SemanticScores",
    "avsbench",
    "davis",
    "g_miou",
    "confidence_interval",
    "bootstrap_indices",
    "semantic",
]
