"""Atrous spatial pyramid pooling as AVSBench's public code has it.

Shapes: F frames, C channels of a backbone's map, D hidden dimension, h w size of a map.
"""

from __future__ import annotations

import torch
from torch import nn

DILATIONS = (3, 6, 12, 18)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., 2017), the sum of four dilated 3x3 convolutions."""

    def __init__(self, in_channels: int, hidden_dim: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels, hidden_dim, 3, padding=dilation, dilation=dilation) for dilation in DILATIONS
        )
        for branch in self.branches:
            assert isinstance(branch, nn.Conv2d)
            nn.init.normal_(branch.weight, std=0.01)

    def forward(self, map_FChw: torch.Tensor) -> torch.Tensor:
        first, *others = self.branches
        total = first(map_FChw)
        for branch in others:
            total = total + branch(map_FChw)
        return total
