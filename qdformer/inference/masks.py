"""Forms of masks: COCO run lengths, boxes, and indexed PNG files with the palette of DAVIS.

Shapes: H W pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image


class RunLengths(TypedDict):
    """An uncompressed COCO RLE: `pycocotools.mask.frPyObjects` reads it."""

    size: list[int]
    """Height and width."""
    counts: list[int]
    """Lengths of the runs of 0, 1, 0, ... in column-major order; the first run is of 0 and may have the length 0."""


def encode_rle(mask_HW: np.ndarray) -> RunLengths:
    """The run lengths of a boolean mask."""
    flat = np.asarray(mask_HW, bool).ravel(order="F")
    starts = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], starts, [flat.size]])
    counts = np.diff(bounds).tolist()
    if flat.size and flat[0]:
        counts = [0, *counts]
    return {"size": list(mask_HW.shape), "counts": counts}


def decode_rle(rle: RunLengths) -> np.ndarray:
    """The boolean mask [H, W] of run lengths. Raises `ValueError` if they do not fit the size."""
    height, width = rle["size"]
    if sum(rle["counts"]) != height * width:
        raise ValueError(f"the counts of the RLE sum to {sum(rle['counts'])}; expected {height} x {width}")
    values = np.arange(len(rle["counts"])) % 2 == 1
    return np.repeat(values, rle["counts"]).reshape(height, width, order="F")


def bounding_box(mask_HW: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, width and height of the smallest box around a mask that is not empty, in pixels."""
    rows, columns = np.flatnonzero(mask_HW.any(axis=1)), np.flatnonzero(mask_HW.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def davis_palette() -> np.ndarray:
    """The colors of the class ids 0..255 in DAVIS and PASCAL VOC, uint8 [256, 3].

    Bit 3 i + c of the id is bit 7 - i of color channel c.
    """
    ids = np.arange(256)[:, None]
    channels = np.arange(3)
    colors = np.zeros((256, 3), int)
    for bit in range(8):
        colors |= ((ids >> (3 * bit + channels)) & 1) << (7 - bit)
    return colors.astype(np.uint8)


def write_label_map(path: Path, labels_HW: np.ndarray) -> None:
    """Write class ids (uint8) as an indexed PNG file whose pixel values are the ids."""
    image = Image.fromarray(labels_HW.astype(np.uint8), mode="L")
    image.putpalette(davis_palette().tobytes())
    image.save(path, "PNG")
