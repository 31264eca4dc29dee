"""Prediction with a trained model on videos outside of any data set."""

from qdformer.inference.predictor import ClipPrediction, Predictor
from qdformer.inference.segmenter import SecondResult, Segmenter, SoundingObject
from qdformer.inference.sound import SoundStream
from qdformer.inference.video import VideoError

__all__ = [
    "ClipPrediction",
    "Predictor",
    "SecondResult",
    "Segmenter",
    "SoundStream",
    "SoundingObject",
    "VideoError",
]
