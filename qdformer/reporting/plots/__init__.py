"""Figures of clips, scores, training, audio tokens and sounds.

Every drawing function returns a matplotlib `Figure` and needs no display; `save` writes it. matplotlib is imported
when the first figure is drawn. An object class has the same color in every figure.
"""

from qdformer.reporting.plots.audio import spectrograms
from qdformer.reporting.plots.clips import overlay, picture_grid
from qdformer.reporting.plots.colors import OKABE_ITO, class_colors
from qdformer.reporting.plots.scores import class_bars, confusion_matrix, robustness_curve, robustness_curves
from qdformer.reporting.plots.style import METRIC_TITLES, condition_title, save
from qdformer.reporting.plots.tokens import codebook_use, token_map
from qdformer.reporting.plots.training import training_curves

__all__ = [
    "METRIC_TITLES",
    "OKABE_ITO",
    "class_bars",
    "class_colors",
    "codebook_use",
    "condition_title",
    "confusion_matrix",
    "overlay",
    "picture_grid",
    "robustness_curve",
    "robustness_curves",
    "save",
    "spectrograms",
    "token_map",
    "training_curves",
]
