"""The figure of scores over cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qdformer.reporting.plots.colors import OKABE_ITO
from qdformer.reporting.plots.style import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def tradeoff(points: Mapping[str, tuple[float, Mapping[str, float | None]]], score_title: str) -> Figure:
    """A score over the operations of models: by the model's name its GFLOP, and `value`, `low` and `high` of the score.

    A score without a value is not drawn. Raises `ValueError` for more models than there are colors.
    """
    if not 0 < len(points) <= len(OKABE_ITO):
        raise ValueError(f"{len(points)} models for one plot; expected 1 to {len(OKABE_ITO)}")
    with new_figure(4.8, 3.6) as figure:
        axes = figure.subplots()
        for (name, (gflop, score)), color, marker in zip(points.items(), OKABE_ITO, "osD^vPX*", strict=False):
            value = score.get("value")
            if value is None or math.isnan(value):
                continue
            low, high = score.get("low"), score.get("high")
            ends = None if low is None or high is None else [[max(value - low, 0)], [max(high - value, 0)]]
            axes.errorbar([gflop], [value], yerr=ends, color=color, marker=marker, capsize=3, linestyle="", label=name)
        axes.set_xlabel("GFLOP of a clip of five frames")
        axes.set_ylabel(score_title)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8.5)
        figure.tight_layout()
    return figure
