"""Colors that readers with and without color blindness can tell apart."""

from __future__ import annotations

import colorsys

import numpy as np

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#a6940b", "#000000")
"""The palette of Okabe and Ito (2008) for all kinds of color vision, its yellow darkened for white paper."""

# Simulation of missing red or green cones on linear RGB (Machado et al., 2009).
_COLOR_BLINDNESS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
_FIRST_COLOR = (0.13, 0.47, 0.82)


def class_colors(num_classes: int) -> np.ndarray:
    """Colors of the class ids 0..`num_classes`: float [num_classes + 1, 3] in 0..1; the background is black.

    Greedy choice: each color is the saturated color with the largest smallest distance in the OKLab space to all
    colors before it, also under simulated color blindness. So the color of a class does not depend on the number of
    classes.
    """
    shades = [(saturation, value) for saturation in (0.4, 0.65, 0.9) for value in (0.6, 0.78, 0.95)]
    candidates = np.array([colorsys.hsv_to_rgb(hue / 72, *shade) for hue in range(72) for shade in shades])
    lightness = oklab(candidates)[:, 0]
    candidates = candidates[(lightness > 0.42) & (lightness < 0.86)]  # visible on a dark frame and on white paper
    # Distances under color blindness count twice: with equal weight, normal vision would lose more contrast than
    # color-blind vision gains.
    simulated = [2 * oklab(simulate_color_blindness(candidates, kind)) for kind in _COLOR_BLINDNESS]
    coordinates = np.stack([oklab(candidates), *simulated])
    chosen = [int(np.argmin(np.abs(candidates - _FIRST_COLOR).sum(axis=1)))]
    distance = np.full(len(candidates), np.inf)
    while len(chosen) < num_classes:
        to_last = np.linalg.norm(coordinates - coordinates[:, chosen[-1], None], axis=2).min(axis=0)
        distance = np.minimum(distance, to_last)
        chosen.append(int(np.argmax(distance)))
    return np.concatenate([np.zeros((1, 3)), candidates[chosen[:num_classes]]])


def simulate_color_blindness(rgb: np.ndarray, kind: str) -> np.ndarray:
    """sRGB [..., 3] in 0..1 as seen without red cones (`kind` "protan") or without green cones ("deutan")."""
    linear = (_linear(rgb) @ np.array(_COLOR_BLINDNESS[kind]).T).clip(0, 1)
    return np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in 0..1 to OKLab (Ottosson, 2020), where distances follow perceived differences."""
    to_cones = np.array(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
    to_lab = np.array(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ]
    )
    return np.cbrt(_linear(rgb) @ to_cones.T) @ to_lab.T


def _linear(rgb: np.ndarray) -> np.ndarray:
    return np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
