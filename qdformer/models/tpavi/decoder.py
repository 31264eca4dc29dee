"""The decoder of TPAVI.

Shapes: F frames, D hidden dimension, K output channels, H W size of a frame, h w size of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class ResidualUnit(nn.Module):
    """conv(relu(conv(relu(x)))) + relu(x). In the public code the residual is relu(x) and not x as well, because its
    first ReLU works in place.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1)
        self.second = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(x)
        return self.second(functional.relu(self.first(x))) + x


class FusionBlock(nn.Module):
    """Adds the map of a stage to the coarser one, refines the sum and upsamples it to `size`, as in Panoptic FPN."""

    def __init__(self, hidden_dim: int, coarsest: bool = False) -> None:
        super().__init__()
        self.lateral = None if coarsest else ResidualUnit(hidden_dim)  # the public code leaves this one unused
        self.refine = ResidualUnit(hidden_dim)

    def forward(self, stage: torch.Tensor, coarser: torch.Tensor | None, size: Sequence[int]) -> torch.Tensor:
        if self.lateral is not None:
            assert coarser is not None
            stage = coarser + self.lateral(stage)
        return functional.interpolate(self.refine(stage), size=size, mode="bilinear", align_corners=True)


class Decoder(nn.Module):
    """Four fusion blocks, from coarse to fine, and three convolutions -> logits at the size of the frames.

    The public code upsamples by factors of 2. Here each map is upsampled to the size of the next, which is the same if
    the frame's sides are multiples of 32.
    """

    def __init__(self, hidden_dim: int, out_channels: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(FusionBlock(hidden_dim, coarsest=index == 3) for index in range(4))
        middle, narrow = hidden_dim // 2, hidden_dim // 8  # 128 and 32 in the public code
        self.reduce = nn.Conv2d(hidden_dim, middle, 3, padding=1)
        self.smooth = nn.Conv2d(middle, narrow, 3, padding=1)
        self.classify = nn.Conv2d(narrow, out_channels, 1)

    def forward(self, maps: Sequence[torch.Tensor], frame_size: tuple[int, int]) -> torch.Tensor:
        """The maps of the four stages, fine to coarse -> logits [F, K, H, W]."""
        half = [(side + 1) // 2 for side in frame_size]
        sizes = [half, *(map_FDhw.shape[-2:] for map_FDhw in maps[:-1])]
        x = None
        for block, map_FDhw, size in reversed(list(zip(self.blocks, maps, sizes, strict=True))):
            x = block(map_FDhw, x, size)
        x = functional.interpolate(self.reduce(x), size=frame_size, mode="bilinear", align_corners=False)
        return self.classify(functional.relu(self.smooth(x)))
