"""From what a label file holds to class ids, in this one place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from qdformer.config.train import Task
from qdformer.utils.constants import IGNORE_INDEX

OBJECT = "object"
"""The one class of the task avs: whatever sounds."""

_AVS = [0] + [1] * (IGNORE_INDEX - 1) + [IGNORE_INDEX]
_BINARY = [0] + [1] * 255


def open_label_map(path: Path, binary: bool, task: Task) -> Image.Image:
    """The label map in the file `path`, as `to_class_ids` gives it."""
    return to_class_ids(Image.open(path), binary, task)


def to_class_ids(image: Image.Image, binary: bool, task: Task) -> Image.Image:
    """A label map as a picture whose values are class ids: 0 background, 255 not labeled.

    Args:
        image: what a label file holds. AVSBench S4 has masks of mode '1', MS3 of mode 'P' (0 or 255), AVSS class ids.
        binary: it is a mask of what sounds: every value but 0 is the object.
        task: `avs` takes all classes as the one object, 1.
    """
    if not binary and task == "avss":
        return image
    values = image if image.mode in ("L", "P") else image.convert("L")
    # through an array: what a palette's indices are shown as does not matter
    table = np.array(_BINARY if binary else _AVS, np.uint8)
    return Image.fromarray(table[np.asarray(values)])
