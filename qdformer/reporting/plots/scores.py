"""Scores by condition and by class.

Shapes: K classes with the background first.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from qdformer.reporting.plots.colors import OKABE_ITO
from qdformer.reporting.plots.style import (
    ACCENT,
    FAINT,
    INK,
    METRIC_TITLES,
    MUTED,
    SECOND,
    condition_title,
    heat_map,
    new_figure,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qdformer.data.manifest import Classes


def robustness_curve(
    summaries: Mapping[str, Mapping[str, float | None]],
    intervals: Mapping[str, Mapping[str, Mapping[str, float | None]]] | None = None,
    keys: Sequence[str] = ("miou_dataset", "davis_jf"),
) -> Figure:
    """Scores over the signal-to-noise ratio, with the controls as levels; one panel per key.

    `summaries` maps each condition (`clean`, `snr10`, `snr-5`, ..., and controls under any other name) to its
    scores, `intervals` to the `low` and `high` of each score, drawn as a band.
    """
    positions, labels = _snr_axis(summaries)
    with new_figure(4.6 * len(keys), 3.4) as figure:
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
            scores = {name: _float(summary[key]) for name, summary in summaries.items()}
            ends = {name: interval[key] for name, interval in intervals.items()} if intervals else None
            tops = _draw_curve(axes, positions, scores, ends, ACCENT)
            for (name, position), top in zip(positions.items(), tops, strict=True):
                text = f"{scores[name]:.3f}"
                axes.annotate(text, (position, top), (0, 4), textcoords="offset points", ha="center", fontsize=8)
            levels = {name: score for name, score in scores.items() if name not in positions and np.isfinite(score)}
            highest = np.nanmax([*tops, *levels.values()], initial=0) * 1.15 or 1
            _finish_snr_axes(axes, key, positions, labels, highest)
            heights = _spread(list(levels.values()), highest * 0.06)
            for (name, level), height in zip(levels.items(), heights, strict=True):
                axes.axhline(level, color=FAINT, linestyle=(0, (4, 3)), linewidth=1)
                axes.annotate(
                    f"{condition_title(name)} {level:.3f}",
                    (1, height / highest),
                    (4, 0),
                    xycoords="axes fraction",
                    textcoords="offset points",
                    va="center",
                    fontsize=8,
                    color=MUTED,
                )
        figure.tight_layout(w_pad=2)
    return figure


def robustness_curves(
    runs: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float | None]]]],
    keys: Sequence[str] = ("miou_dataset", "davis_jf"),
) -> Figure:
    """Scores of several runs over the signal-to-noise ratio (the paper's Fig. 7); one panel per key.

    `runs` maps each run's name to its intervals: per condition and score `value`, `low` and `high`. Conditions that
    are neither `clean` nor an SNR are not drawn. Raises `ValueError` without a run, or for more than there are colors.
    """
    if not 0 < len(runs) <= len(OKABE_ITO):
        raise ValueError(f"{len(runs)} runs for one plot; expected 1 to {len(OKABE_ITO)}")
    positions, labels = _snr_axis({condition: None for intervals in runs.values() for condition in intervals})
    with new_figure(4.6 * len(keys), 3.8) as figure:
        grid = figure.subplots(1, len(keys), squeeze=False)[0]
        for axes, key in zip(grid, keys, strict=True):
            highest = 0.0
            for (name, intervals), color, marker in zip(runs.items(), OKABE_ITO, "osD^vPX*", strict=False):
                ends = {condition: interval[key] for condition, interval in intervals.items()}
                scores = {condition: _float(end["value"]) for condition, end in ends.items()}
                own = {condition: position for condition, position in positions.items() if condition in ends}
                tops = _draw_curve(axes, own, scores, ends, color, marker, name)
                highest = np.nanmax(tops, initial=highest)
            _finish_snr_axes(axes, key, positions, labels, highest * 1.1 or 1)
        figure.tight_layout(w_pad=2, rect=(0, 0.09, 1, 1))
        handles, names = grid[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="lower center", ncols=min(6, len(names)), fontsize=8.5)
    return figure


def _snr_axis(conditions: Mapping[str, object]) -> tuple[dict[str, float], list[str]]:
    """The positions of the noisy conditions and `clean` on the axis, from left to right, and their labels."""
    noisy = sorted((int(match[1]), name) for name in conditions if (match := re.fullmatch(r"snr(-?\d+)", name)))
    positions: dict[str, float] = {name: snr for snr, name in noisy}
    labels = [str(snr).replace("-", "\u2212") for snr, _ in noisy]
    if "clean" in conditions:  # infinitely far to the right; drawn one broken step away
        positions["clean"] = max(positions.values(), default=0) + 8
        labels.append("clean")
    return positions, labels


def _draw_curve(
    axes: Axes,
    positions: Mapping[str, float],
    scores: Mapping[str, float],
    intervals: Mapping[str, Mapping[str, float | None]] | None,
    color: str,
    marker: str = "o",
    label: str | None = None,
) -> list[float]:
    """Draw the line of one run, with its intervals as a band; return the highest point drawn at each position."""
    x, y = list(positions.values()), [scores[name] for name in positions]
    tops = y
    if intervals:
        low, tops = ([_float(intervals[name][end]) for name in positions] for end in ("low", "high"))
        axes.fill_between(x, low, tops, color=color, alpha=0.13, linewidth=0)
    noisy = len(x) - ("clean" in positions)
    axes.plot(x, y, color=color, linestyle=":", linewidth=1.6)
    axes.plot(x[:noisy], y[:noisy], color=color, linewidth=2)
    axes.plot(x, y, color=color, marker=marker, markersize=5, linestyle="", label=label)
    return tops


def _float(value: float | None) -> float:
    """An undefined score, None, as NaN, which is not drawn."""
    return math.nan if value is None else value


def _finish_snr_axes(axes: Axes, key: str, positions: Mapping[str, float], labels: list[str], highest: float) -> None:
    axes.set(ylim=(0, highest), xlabel="signal-to-noise ratio, dB")
    axes.margins(x=0.08)
    axes.set_xticks(list(positions.values()), labels)
    axes.set_title(METRIC_TITLES.get(key, key))
    axes.grid(axis="x", visible=False)


def class_bars(per_class: pandas.DataFrame, key: str = "iou") -> Figure:
    """IoU of each class, highest first, in one color for seen and one for unseen classes, with the mean of each.

    `per_class` is `Evaluation.per_class`; classes that never occur are named below the axis.
    """
    objects = per_class[per_class["id"] > 0]
    shown = objects.dropna(subset=key).sort_values(key, kind="stable")
    absent = objects.loc[objects[key].isna(), "name"].tolist()
    with new_figure(6.4, 1.5 + 0.22 * max(len(shown), 3)) as figure:
        axes = figure.subplots()
        for kind, color, name in ((False, ACCENT, "seen"), (True, SECOND, "unseen")):
            chosen = (shown["unseen"] == kind).to_numpy()
            if not chosen.any():
                continue
            scores = shown[key].to_numpy()[chosen]
            mean = scores.mean()
            axes.barh(np.flatnonzero(chosen), scores, height=0.68, color=color, label=f"{name}, mean {mean:.3f}")
            axes.axvline(mean, color=color, linewidth=1.2, linestyle=(0, (4, 3)))
        for position, score in enumerate(shown[key]):
            text = axes.annotate(f"{score:.2f}", (score, position), (3, 0), textcoords="offset points", va="center")
            text.set(fontsize=7, bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5})
        axes.set_yticks(range(len(shown)), shown["name"], fontsize=8)
        axes.set(xlim=(0, 1), ylim=(-0.6, len(shown) - 0.4), xlabel="IoU" if key == "iou" else key)
        axes.grid(axis="y", visible=False)
        if len(shown):
            axes.legend(loc="lower right", fontsize=8)
        axes.set_title("IoU by class, dataset-level" if key == "iou" else f"{key} by class")
        if absent:
            axes.set_xlabel(f"{axes.get_xlabel()}\nnever labeled nor predicted: {', '.join(absent)}")
        figure.tight_layout()
    return figure


def confusion_matrix(confusion_KK: np.ndarray, classes: Classes) -> Figure:
    """The share of the pixels of each class (rows, background first) predicted as each class (columns).

    `confusion_KK` holds numbers of pixels, [C + 1, C + 1]. The row of a class that never occurs is left empty.
    """
    names = ["background", *classes.names]
    total_K1 = confusion_KK.sum(axis=1, keepdims=True)
    share_KK = np.where(total_K1 > 0, confusion_KK / np.maximum(total_K1, 1), np.nan)
    side = 2.2 + 0.29 * max(len(names), 6)
    with new_figure(side + 0.6, side) as figure:
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        image = heat_map(axes, share_KK, names, names)
        if len(names) <= 40:
            for row, column in np.argwhere(share_KK >= 0.005):
                share = share_KK[row, column]
                text = "1" if share >= 0.995 else f"{share:.2f}".removeprefix("0")
                color = "white" if share > 0.5 else INK
                axes.text(column, row, text, ha="center", va="center", fontsize=5.5, color=color)
        axes.set(xlabel="predicted class", ylabel="true class")
        axes.set_title("Share of pixels predicted as each class")
        figure.colorbar(image, ax=axes, label="share of the pixels of the true class", shrink=0.6, pad=0.015)
    return figure


def _spread(levels: list[float], least: float) -> list[float]:
    """The `levels`, moved up where two are less than `least` apart, so that their texts do not overlap."""
    order = sorted(range(len(levels)), key=levels.__getitem__)
    heights = list(levels)
    for lower, upper in zip(order, order[1:], strict=False):
        heights[upper] = max(heights[upper], heights[lower] + least)
    return heights
