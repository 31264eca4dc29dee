"""Random views of training clips: a crop, a mirror image and other colours, the same in every frame of a clip.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from qdformer.config.train import Augment


@dataclass(frozen=True)
class View:
    """How to look at a clip."""

    corner: tuple[float, float]
    """Left and top of the crop, as shares of the room that it leaves."""
    side: float
    """Of the crop, as a share of the frame's."""
    flipped: bool
    brightness: float
    contrast: float
    saturation: float
    tint_3: np.ndarray

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The crop of a frame: left, top, right, bottom, in pixels."""
        left, top = ((1 - self.side) * room * length for room, length in zip(self.corner, (width, height), strict=True))
        return left, top, left + self.side * width, top + self.side * height

    def hflip(self, frames_THW: np.ndarray) -> np.ndarray:
        """[T, H, W, ...], mirrored left to right or not."""
        return frames_THW[:, :, ::-1] if self.flipped else frames_THW

    def color_jitter(self, images_THW3: np.ndarray) -> np.ndarray:
        """uint8 [T, H, W, 3] in the view's colours: brighter, then more contrast about the mean, saturated, tinted."""
        mean = float(images_THW3.mean()) * self.brightness
        saturate_33 = self.saturation * np.eye(3) + (1 - self.saturation) / 3
        colors_33 = self.tint_3[:, None] * saturate_33  # all four are linear: one product does them
        scale_33, shift_3 = self.brightness * self.contrast * colors_33, (1 - self.contrast) * mean * self.tint_3
        # By Pillow: the threads of NumPy's BLAS wait for work on a busy core, and slow the training beside them; and
        # torch's buffers, freed and never used again, would pile up among Pillow's.
        matrix = tuple(np.column_stack([scale_33, shift_3]).ravel())
        return np.stack([np.asarray(Image.fromarray(image).convert("RGB", matrix)) for image in images_THW3])


def sample_view(augment: Augment, generator: np.random.Generator) -> View:
    """A view drawn within the limits of `augment`."""

    def around_one(most: float, size: int | None = None):
        return generator.uniform(1 - most, 1 + most, size)

    return View(
        corner=tuple(generator.random(2)),
        side=generator.uniform(augment.crop, 1),
        flipped=generator.random() < augment.flip,
        brightness=around_one(augment.color),
        contrast=around_one(augment.color),
        saturation=around_one(augment.color),
        tint_3=around_one(augment.color / 2, 3),
    )
