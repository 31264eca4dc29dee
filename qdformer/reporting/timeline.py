"""A picture of the classes of a video over time, below the spectrogram of its sound.

Shapes: C object classes, S samples, M frequency bands, N columns, K classes that are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qdformer.reporting.plots.colors import class_colors
from qdformer.reporting.plots.style import INK, new_figure

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BANDS, COLUMNS_PER_SECOND = 64, 20
LOWEST_HZ, HIGHEST_HZ = 60.0, 8000.0
MOST_CLASSES, LEAST_PROBABILITY = 12, 0.3
LEGEND = "strength of the color: probability of the class; black bar: it has a mask"
_MOST_COLUMNS = 2000
_FLOOR_DB = -100.0


class Timeline:
    """Collects a video second by second, in a few kilobytes each, and draws it."""

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._probs: list[np.ndarray] = []
        self._areas: list[frozenset[int]] = []
        self._levels: list[np.ndarray] = []

    def add(self, class_probs_C: np.ndarray, area_ids: Collection[int], sound_S: np.ndarray, sample_rate: int) -> None:
        """Add a second: the probability of each class, the ids (1..C) with a mask, and the mono sound."""
        self._probs.append(class_probs_C.astype(np.float16))
        self._areas.append(frozenset(area_ids))
        self._levels.append(_band_levels(sound_S, sample_rate).astype(np.float16))

    def shown(self) -> list[int]:
        """The ids of the classes that are drawn, in the order of their ids.

        They have a mask or a probability of at least `LEAST_PROBABILITY` in some second; of more than `MOST_CLASSES`,
        those with the largest sum of probabilities.
        """
        total_C = np.stack(self._probs).sum(axis=0, dtype=np.float64)
        return sorted(sorted(self._present(), key=lambda class_id: -total_C[class_id - 1])[:MOST_CLASSES])

    def _present(self) -> list[int]:
        """The ids of the classes with a mask or a probability of at least `LEAST_PROBABILITY` in some second."""
        with_area, highest_C = frozenset().union(*self._areas), np.stack(self._probs).max(axis=0)
        ids = range(1, len(self.classes) + 1)
        return [own for own in ids if own in with_area or highest_C[own - 1] >= LEAST_PROBABILITY]

    def draw(self, title: str) -> Figure:
        """The figure. Raises `ValueError` if no second was added."""
        if not self._probs:
            raise ValueError("a timeline needs at least one second")
        ids, seconds = self.shown(), len(self._probs)
        colors = class_colors(len(self.classes))
        levels_NM = np.concatenate(self._levels).astype(np.float32)
        step = -(-len(levels_NM) // _MOST_COLUMNS)
        starts = np.arange(0, len(levels_NM), step)
        levels_NM = np.maximum.reduceat(levels_NM, starts, axis=0)
        with new_figure(min(16.0, 7.0 + 0.15 * seconds), 3.1 + 0.3 * max(1, len(ids))) as figure:
            figure.set_layout_engine("constrained")
            top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.8, 0.2 + 0.3 * max(1, len(ids))])
            image = top.imshow(
                levels_NM.T,
                extent=(0, seconds, 0, BANDS),
                origin="lower",
                aspect="auto",
                interpolation="nearest",
                cmap="magma",
                vmin=_FLOOR_DB,
                vmax=-10,
            )
            ticks = [250, 1000, 4000]
            top.set_yticks(_band_of(np.array(ticks)), [str(hertz) for hertz in ticks])
            top.set_ylabel("Hz")
            top.grid(visible=False)
            figure.colorbar(image, ax=top, label="dB of full scale", pad=0.01)
            _draw_classes(bottom, np.stack(self._probs), self._areas, ids, [self.classes[i - 1] for i in ids], colors)
            legend, present = LEGEND, len(self._present())
            if present > len(ids):
                legend += f"; the {len(ids)} likeliest of {present} classes"
            bottom.set_title(legend, fontsize=8, fontweight="normal")
            bottom.set_xlabel("s")
            bottom.set_xlim(0, seconds)
            figure.suptitle(title, x=0.012, ha="left", fontweight="bold", fontsize=10)
        return figure


def _draw_classes(
    axes: Axes, probs_NC: np.ndarray, areas: list[frozenset[int]], ids: list[int], names: list[str], colors: np.ndarray
) -> None:
    """A row per class: the opacity is the probability, and a bar marks the seconds with a mask."""
    axes.grid(visible=False)
    if not ids:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "no class sounds", transform=axes.transAxes, ha="center", va="center")
        return
    cells_KN4 = np.ones((len(ids), len(probs_NC), 4))
    for row, class_id in enumerate(ids):
        cells_KN4[row, :, :3] = colors[class_id]
        cells_KN4[row, :, 3] = probs_NC[:, class_id - 1]
        spans = [(second, 1.0) for second, area in enumerate(areas) if class_id in area]
        axes.broken_barh(spans, (row + 0.32, 0.12), facecolors=INK, linewidth=0)
    extent = (0, len(probs_NC), len(ids) - 0.5, -0.5)
    axes.imshow(cells_KN4, extent=extent, aspect="auto", interpolation="nearest")
    axes.set_yticks(range(len(ids)), names)
    axes.set_ylim(len(ids) - 0.5, -0.5)


def _band_levels(sound_S: np.ndarray, sample_rate: int) -> np.ndarray:
    """Levels [N, M] in dB relative to a sine of full scale, in mel bands of a 32 ms Hann window: the loudest bin."""
    window = round(0.032 * sample_rate)
    padded = np.pad(sound_S, (window // 2, window))
    places = (np.arange(COLUMNS_PER_SECOND) + 0.5) / COLUMNS_PER_SECOND * sample_rate
    hann = np.hanning(window + 1)[:-1]
    frames = np.stack([padded[int(place) : int(place) + window] for place in places])
    magnitudes = np.abs(np.fft.rfft(frames * hann)) * 2 / hann.sum()
    places_F = _band_of(np.fft.rfftfreq(window, 1 / sample_rate))
    levels = np.empty((COLUMNS_PER_SECOND, BANDS))
    for band in range(BANDS):
        bins = np.flatnonzero((places_F >= band) & (places_F < band + 1))
        if not len(bins):  # a band narrower than a bin
            bins = np.array([np.abs(places_F - band - 0.5).argmin()])
        levels[:, band] = magnitudes[:, bins].max(axis=1)
    return 20 * np.log10(np.maximum(levels, 10 ** (_FLOOR_DB / 20)))


def _band_of(hertz: np.ndarray) -> np.ndarray:
    """Places of frequencies on the mel scale, 0 at `LOWEST_HZ` and `BANDS` at `HIGHEST_HZ`."""

    def mel(value: np.ndarray | float) -> np.ndarray:
        return 2595 * np.log10(1 + np.asarray(value) / 700)

    return (mel(hertz) - mel(LOWEST_HZ)) / (mel(HIGHEST_HZ) - mel(LOWEST_HZ)) * BANDS
