"""Metrics of audio-visual segmentation, each under the name and by the definition of its own protocol.

The protocols differ most in how they score frames without a sounding object; each module documents its rule. The
modules `avsbench`, `semantic` and `davis` hold the published functions on tensors or NumPy arrays.

The accumulators (`AVSBenchScores`, `DavisScores`, `SemanticScores`, `PredictedArea`, `SoundingScores`, `TokenScores`)
take one clip at a time as NumPy arrays and keep a few kilobytes per clip, but no pixels. They merge over the processes
of a distributed evaluation and compute the metrics of any resample of the clips; the full set is one such resample.
"""

from __future__ import annotations

from qdformer.metrics import avsbench, davis, semantic
from qdformer.metrics.avsbench import AVSBenchScores
from qdformer.metrics.bootstrap import bootstrap_indices, confidence_interval
from qdformer.metrics.clips import MetricError
from qdformer.metrics.davis import DavisScores
from qdformer.metrics.decomposition import SoundingScores, TokenScores
from qdformer.metrics.robustness import PredictedArea, g_miou
from qdformer.metrics.semantic import SemanticScores

__all__ = [
    "AVSBenchScores",
    "DavisScores",
    "MetricError",
    "PredictedArea",
    "SemanticScores",
    "SoundingScores",
    "TokenScores",
    "avsbench",
    "bootstrap_indices",
    "confidence_interval",
    "davis",
    "g_miou",
    "semantic",
]
