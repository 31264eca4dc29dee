"""Converts the content of label files to class ids."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qdformer.utils.constants import IGNORE_INDEX

if TYPE_CHECKING:
    from qdformer.config.train import Task

OBJECT = "object"
"""The only class of the task avs: any sounding object."""

_AVS = [0] + [1] * (IGNORE_INDEX - 1) + [IGNORE_INDEX]
_BINARY = [0] + [1] * 255


def open_label_map(path: Path, binary: bool, task: Task) -> Image.Image:
    """Open the label map in the file `path` and convert it with `to_class_ids`."""
    return to_class_ids(Image.open(path), binary, task)


def to_class_ids(image: Image.Image, binary: bool, task: Task) -> Image.Image:
    """Convert a label map to an image whose values are class ids: 0 background, 255 not labeled.

    Args:
        image: the content of a label file. AVSBench S4 has masks of mode '1', MS3 masks of mode 'P' (0 or 255), AVSS
            class ids.
        binary: the image is a mask of the sounding object: every value except 0 belongs to it.
        task: `avs` maps all classes to the single class 1.
    """
    if not binary and task == "avss":
        return image
    values = image if image.mode in ("L", "P") else image.convert("L")
    # Through an array, so that the palette has no influence.
    table = np.array(_BINARY if binary else _AVS, np.uint8)
    return Image.fromarray(table[np.asarray(values)])
