"""What all backbones have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn


class Backbone(nn.Module, ABC):
    """A stem, then stages; maps are taken at strides 4, 8, 16 and 32."""

    channels: dict[int, int]
    """Of each map, by its stride."""
    stem: nn.Module
    stages: nn.ModuleList

    @abstractmethod
    def forward(self, images_F3HW: torch.Tensor) -> dict[int, torch.Tensor]:
        """Pixels in 0..255 -> maps [F, channels[stride], H / stride, W / stride] by stride."""

    def freeze(self, stages: int) -> None:
        """Train neither the stem nor the first `stages` stages."""
        for module in (self.stem, *self.stages[:stages]):
            module.requires_grad_(False)
