"""Spectrograms of sounds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from qdformer.reporting.plots.style import new_figure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure


def spectrograms(sounds: Mapping[str, np.ndarray], sample_rate: int, title: str) -> Figure:
    """One spectrogram per sound, one below another, on a mel scale of frequency.

    `sounds` maps names to equally long sounds [S] in -1..1. The levels are magnitudes of a 32 ms Hann window every
    8 ms, in dB relative to a sine of full scale; all panels share one color scale.
    """
    window, hop = round(0.032 * sample_rate), round(0.008 * sample_rate)
    lowest, highest = 60.0, sample_rate / 2
    ticks = [hertz for hertz in (250, 500, 1000, 2000, 4000, 8000, 16000) if hertz <= highest]
    hann = np.hanning(window + 1)[:-1]
    with new_figure(8.4, 0.9 + 1.75 * len(sounds)) as figure:
        figure.set_layout_engine("constrained", h_pad=0.06, w_pad=0.08)
        column = figure.subplots(len(sounds), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (name, sound) in zip(column, sounds.items(), strict=True):
            padded = np.pad(sound, (window // 2, window))  # frame i is centered on sample i * hop
            frames_TW = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(sound) : hop]
            level_TF = np.abs(np.fft.rfft(frames_TW * hann)) * 2 / hann.sum()
            image = axes.pcolormesh(
                np.arange(len(level_TF)) * hop / sample_rate,
                np.fft.rfftfreq(window, 1 / sample_rate),
                20 * np.log10(np.maximum(level_TF.T, 1e-6)),
                vmin=-100,
                vmax=-10,
                cmap="magma",
                shading="nearest",
                rasterized=True,
            )
            axes.set_yscale("function", functions=(_hertz_to_mel, _mel_to_hertz))
            axes.set_ylim(lowest, highest)
            axes.set_xlim(0, len(sound) / sample_rate)
            axes.set_yticks(ticks, [f"{hertz:,}".replace(",", "\u2009") for hertz in ticks])
            axes.set_yticks([], minor=True)
            axes.set_ylabel("Hz")
            axes.set_title(name, fontsize=9)
            axes.grid(visible=False)
        column[-1].set_xlabel("s")
        figure.suptitle(title, x=0.012, ha="left", fontweight="bold", fontsize=10)
        figure.colorbar(image, ax=list(column), label="dB of full scale", pad=0.015, aspect=14 * len(sounds))
    return figure


def _hertz_to_mel(hertz: np.ndarray) -> np.ndarray:
    return 2595 * np.log10(1 + np.maximum(hertz, 0) / 700)


def _mel_to_hertz(mel: np.ndarray) -> np.ndarray:
    return 700 * (10 ** (mel / 2595) - 1)
