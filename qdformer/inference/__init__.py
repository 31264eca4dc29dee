"""Prediction with a trained model on videos outside of any data set."""

from qdformer.inference.predictor import ClipPrediction, Predictor

__all__ = ["ClipPrediction", "Predictor"]
