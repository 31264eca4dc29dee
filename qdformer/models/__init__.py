"""The methods: frames and VGGish features in; masks, classes and boxes of what sounds out."""

from qdformer.models.qdformer.model import LayerOutput, Prediction, QDFormer, QDFormerOutput, parameter_groups
from qdformer.models.qdformer.quantizer import QuantizerStats

__all__ = ["LayerOutput", "Prediction", "QDFormer", "QDFormerOutput", "QuantizerStats", "parameter_groups"]
