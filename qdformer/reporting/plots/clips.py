"""Frames of clips with their ground truth and prediction.

Shapes: T frames, H W pixels, C object classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qdformer.reporting.plots.colors import class_colors
from qdformer.reporting.plots.style import FAINT, MUTED, new_figure
from qdformer.utils.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from qdformer.data.manifest import Classes
    from qdformer.evaluation.result import Picture


@dataclass(frozen=True)
class _Layout:
    """Lengths of one clip's block, in inches."""

    frame_height: float
    frame_width: float = 1.3
    top: float = 0.42
    bottom: float = 0.56
    left: float = 0.75
    right: float = 0.2
    gap: float = 0.04

    def x(self, frame: int) -> float:
        return self.left + frame * (self.frame_width + self.gap)

    def y(self, row: int) -> float:
        return self.top + row * (self.frame_height + self.gap)


def picture_grid(pictures: Sequence[Picture], classes: Classes, *, threshold: float = 0.3, columns: int = 2) -> Figure:
    """One block per clip: frames, ground truth and prediction over the frames, and the predicted classes.

    The legend of a block names the classes in its ground truth or prediction. Below each frame stand the classes
    with a predicted probability of at least `threshold`, at most three. A frame without ground truth is faded in the
    row of the ground truth. Raises `ValueError` if there is no picture.
    """
    if not pictures:
        raise ValueError("a picture grid needs at least one clip")
    colors = class_colors(len(classes.names))
    longest = max(len(picture.images_THWC) for picture in pictures)
    columns = min(columns, len(pictures)) if longest <= 5 else 1
    rows = math.ceil(len(pictures) / columns)
    ratio = max(height / width for height, width in (picture.truth_THW.shape[1:] for picture in pictures))
    layout = _Layout(frame_height=_Layout.frame_width * ratio)
    block_width, block_height = layout.x(longest) + layout.right, layout.y(3) + layout.bottom
    with new_figure(columns * block_width, rows * block_height) as figure:
        for index, picture in enumerate(pictures):
            row, column = divmod(index, columns)
            axes = figure.add_axes((column / columns, 1 - (row + 1) / rows, 1 / columns, 1 / rows))
            axes.set(xlim=(0, block_width), ylim=(block_height, 0))
            axes.axis("off")
            _draw_block(axes, picture, classes, colors, threshold, layout)
    return figure


def overlay(image_HWC: np.ndarray, labels_HW: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """The frame in gray, with every labeled object tinted and outlined in the color of its class: uint8 [H, W, 3].

    `image_HWC` is uint8; pixels with the label 255 (no ground truth) are faded to white.
    """
    gray_HW1 = image_HWC.mean(axis=-1, keepdims=True) / 255
    labeled_HW = labels_HW != IGNORE_INDEX
    object_HW = (labels_HW > 0) & labeled_HW
    tint_HWC = colors[np.where(labeled_HW, labels_HW, 0)]
    inner_HW = object_HW.copy()
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        inner_HW &= np.roll(labels_HW, step, axis) == labels_HW
    result = np.where(object_HW[..., None], (0.45 + 0.55 * gray_HW1) * tint_HWC + 0.08, 0.1 + 0.55 * gray_HW1)
    result = np.where((object_HW & ~inner_HW)[..., None], 0.45 + 0.55 * tint_HWC, result)
    result = np.where(labeled_HW[..., None], result, 0.8 + 0.15 * gray_HW1)
    return (result.clip(0, 1) * 255).astype(np.uint8)


def _draw_block(
    axes: Axes, picture: Picture, classes: Classes, colors: np.ndarray, threshold: float, layout: _Layout
) -> None:
    """Draw one clip; coordinates are in inches, y downwards."""
    present = sorted((set(np.unique(picture.truth_THW)) | set(np.unique(picture.prediction_THW))) - {0, IGNORE_INDEX})
    axes.text(layout.left, 0.15, picture.uid, fontsize=8, fontweight="bold", va="center")
    legend = [(classes.names[class_id - 1], colors[class_id]) for class_id in present]
    _draw_legend(axes, layout.left, 0.31, legend or [("nothing labeled, nothing predicted", (0.8, 0.8, 0.8))])
    width, height = layout.frame_width, layout.frame_height
    for row, name in enumerate(("frame", "truth", "prediction")):
        top = layout.y(row)
        axes.text(layout.left - 0.08, top + height / 2, name, fontsize=7.5, color=MUTED, ha="right", va="center")
        for frame, image_HWC in enumerate(picture.images_THWC):
            labels_HW = (np.zeros_like(picture.truth_THW), picture.truth_THW, picture.prediction_THW)[row][frame]
            tile = image_HWC if row == 0 else overlay(image_HWC, labels_HW, colors)
            x = layout.x(frame)
            axes.imshow(tile, extent=(x, x + width, top + height, top), interpolation="bilinear", aspect="auto")
    for frame, probs_C in enumerate(picture.class_probs_TC):
        x, y = layout.x(frame), layout.y(3) + 0.07
        likeliest = [index for index in np.argsort(-probs_C, kind="stable")[:3] if probs_C[index] >= threshold]
        for line, index in enumerate(likeliest):
            text = f"{classes.names[index]} {probs_C[index]:.2f}"
            _draw_legend(axes, x, y + 0.14 * line, [(text, colors[index + 1])])
        if not likeliest:
            axes.text(x, y, "no class", fontsize=6.5, color=FAINT, va="center")
    axes.set(xlim=axes.get_xlim())  # imshow has changed the margins
    axes.set_autoscale_on(False)


def _draw_legend(
    axes: Axes, x: float, y: float, items: Sequence[tuple[str, Sequence[float]]], font_size: float = 6.5
) -> None:
    """Draw a row of colored squares, each with its text, from `x` to the right, in inches."""
    from matplotlib.patches import Rectangle

    side = 0.085
    for text, color in items:
        axes.add_patch(Rectangle((x, y - side / 2), side, side, facecolor=color, linewidth=0))
        axes.text(x + side + 0.04, y, text, fontsize=font_size, va="center")
        x += side + 0.14 + len(text) * font_size * 0.0088
