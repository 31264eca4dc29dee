"""The model: frames and VGGish features in; masks, classes and boxes of what sounds out."""

from qdformer.model.qdformer import LayerOutput, Prediction, QDFormer, QDFormerOutput, parameter_groups
from qdformer.model.quantizer import QuantizerStats

__all__ = ["LayerOutput", "Prediction", "QDFormer", "QDFormerOutput", "QuantizerStats", "parameter_groups"]
