"""Random augmentation of training clips: crop, horizontal flip and color jitter, equal in all frames of a clip.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from qdformer.config.train import Augment


@dataclass(frozen=True)
class View:
    """The parameters of the augmentation of one clip."""

    crop_offset: tuple[float, float]
    """Left and top of the crop, relative to the largest possible offset (0..1)."""
    crop_scale: float
    """Side of the crop relative to the side of the frame."""
    flipped: bool
    brightness: float
    contrast: float
    saturation: float
    tint_3: np.ndarray

    def crop_box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The crop of a frame in pixels: left, top, right, bottom."""
        horizontal, vertical = self.crop_offset
        left = (1 - self.crop_scale) * horizontal * width
        top = (1 - self.crop_scale) * vertical * height
        return left, top, left + self.crop_scale * width, top + self.crop_scale * height

    def hflip(self, frames_THW: np.ndarray) -> np.ndarray:
        """Flip frames [T, H, W, ...] horizontally if the view is flipped."""
        return frames_THW[:, :, ::-1] if self.flipped else frames_THW

    def color_jitter(self, images_THW3: np.ndarray) -> np.ndarray:
        """Change brightness, contrast about the mean, saturation and tint of images [T, H, W, 3], in this order."""
        mean = float(images_THW3.mean()) * self.brightness
        saturate_33 = self.saturation * np.eye(3) + (1 - self.saturation) / 3
        colors_33 = self.tint_3[:, None] * saturate_33  # all steps are linear, so one matrix applies them
        scale_33, shift_3 = self.brightness * self.contrast * colors_33, (1 - self.contrast) * mean * self.tint_3
        # By Pillow, because the threads of NumPy's BLAS busy-wait and slow down concurrent training, and buffers freed
        # by torch fragment the memory that Pillow uses.
        matrix = tuple(np.column_stack([scale_33, shift_3]).ravel())
        return np.stack([np.asarray(Image.fromarray(image).convert("RGB", matrix)) for image in images_THW3])


def sample_view(augment: Augment, generator: np.random.Generator) -> View:
    """Draw a view within the limits of `augment`."""

    def factor(limit: float) -> float:
        return generator.uniform(1 - limit, 1 + limit)

    return View(
        crop_offset=(generator.random(), generator.random()),
        crop_scale=generator.uniform(augment.crop, 1),
        flipped=generator.random() < augment.flip,
        brightness=factor(augment.color),
        contrast=factor(augment.color),
        saturation=factor(augment.color),
        tint_3=generator.uniform(1 - augment.color / 2, 1 + augment.color / 2, 3),
    )
