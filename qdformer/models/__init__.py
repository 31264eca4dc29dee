"""Audio-visual segmentation methods: from frames and VGGish features to masks and classes of the sounding objects."""

from qdformer.models.common.method import Method, Prediction
from qdformer.models.qdformer.model import QDFormer
from qdformer.models.qdformer.output import LayerOutput, QDFormerOutput
from qdformer.models.qdformer.quantizer import QuantizerStats
from qdformer.models.registry import METHODS, build_model

__all__ = [
    "METHODS",
    "LayerOutput",
    "Method",
    "Prediction",
    "QDFormer",
    "QDFormerOutput",
    "QuantizerStats",
    "build_model",
]
