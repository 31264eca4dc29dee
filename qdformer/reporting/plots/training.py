"""Curves of a training run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pandas

from qdformer.reporting.plots.colors import class_colors
from qdformer.reporting.plots.style import ACCENT, new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = {
    "validation, mIoU": ["val_miou_dataset"],
    "codebook perplexity": ["codebook_perplexity", "codebook_perplexity_local"],
    "similarity of a clip's tokens": ["token_similarity"],
    "gradient norm": ["gradient_norm"],
    "learning rate": ["learning_rate"],
}

_TOTAL = ["total", "val_total"]
_LABELS = {
    "total": "training",
    "val_total": "validation",
    "codebook_perplexity": "global codebook",
    "codebook_perplexity_local": "local codebook",
    "cls": "class",
    "l1": "box L1",
    "giou": "box GIoU",
    "token_cls": "class of clip tokens",
    "local_token_cls": "class of frame tokens",
}


def training_curves(history: Sequence[Mapping[str, float]]) -> Figure:
    """Losses, codebook perplexity, token similarity, gradient norm and learning rate over the epochs.

    `history` holds one row per epoch, as `qdformer.training` writes it. Every column that belongs to no other panel
    is a loss; a panel without a column is left out. Raises `ValueError` for an empty history.
    """
    if not history:
        raise ValueError("training curves need at least one epoch")
    table = pandas.DataFrame(list(history)).set_index("epoch")
    not_losses = {*_TOTAL, "seconds", *(name for names in _PANELS.values() for name in names)}
    losses = [name for name in table.columns if name not in not_losses]
    present = {
        title: [name for name in names if name in table]
        for title, names in {"total loss": _TOTAL, "losses": losses, **_PANELS}.items()
    }
    panels = {title: names for title, names in present.items() if names}
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with new_figure(3.9 * columns, 2.7 * rows) as figure:
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes, (title, names) in zip(grid, panels.items(), strict=False):
            colors = class_colors(len(names))[1:] * 0.85 if len(names) > 1 else [ACCENT]
            for name, color in zip(names, colors, strict=True):
                label = _LABELS.get(name, name)
                axes.plot(table.index, table[name], color=color, marker="o", markersize=3, linewidth=1.6, label=label)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
            axes.set_xlim(table.index[0] - 0.3, table.index[-1] + 0.3)
            if title == "learning rate":
                _use_log_scale(axes, table[names].to_numpy(float))
            else:
                axes.set_ylim(bottom=0)
            if len(names) > 1:
                _reserve_legend(axes, len(names))
        for axes in grid[len(panels) :]:
            axes.axis("off")
        figure.tight_layout(w_pad=2, h_pad=1.5)
    return figure


def _use_log_scale(axes: Axes, values: np.ndarray) -> None:
    """A logarithmic y-axis with at least a factor of two on both sides of the positive values, if there are any."""
    positive = values[np.isfinite(values) & (values > 0)]
    if positive.size:
        axes.set_yscale("log")
        axes.set_ylim(positive.min() / 2, positive.max() * 2)


def _reserve_legend(axes: Axes, entries: int) -> None:
    """A legend above the curves: the y-axis gets the room that it needs."""
    columns = 2 if entries > 4 else 1
    bottom, top = axes.get_ylim()
    share = min(0.5, 0.05 + 0.085 * math.ceil(entries / columns))  # of the panel's height
    axes.set_ylim(bottom, bottom + (top - bottom) / (1 - share))
    axes.legend(loc="upper right", fontsize=7.5, ncols=columns, handlelength=1.2, columnspacing=1)
