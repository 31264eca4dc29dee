"""The interface of the backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn


class Backbone(nn.Module, ABC):
    """A stem followed by stages, with feature maps at strides 4, 8, 16 and 32."""

    channels: dict[int, int]
    """Number of channels of each map, by stride."""
    stem: nn.Module
    stages: nn.ModuleList
    frames_per_clip: int = 1
    """Number of consecutive images that belong to one clip; with several ranks, stochastic depth needs to know which
    images of the global batch it has.
    """

    @abstractmethod
    def forward(self, images_F3HW: torch.Tensor) -> dict[int, torch.Tensor]:
        """Pixel values 0..255 -> maps [F, channels[stride], H / stride, W / stride] by stride."""

    def freeze(self, stages: int) -> None:
        """Exclude the stem and the first `stages` stages from training."""
        for module in (self.stem, *self.stages[:stages]):
            module.requires_grad_(False)

    def freeze_maps_except(self, strides: Sequence[int]) -> None:  # noqa: B027
        """Exclude from training the layers that only the maps of other strides need."""
