"""Pixel encoder: the transformer encoder on top of the backbone, which encodes the visual tokens of each frame.

Shapes: F frames, S tokens of a frame (all maps, fine to coarse, each in row order), D hidden dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from qdformer.models.common.deformable import DeformableLayer, SamplingGrid
from qdformer.models.common.transformer import EncoderLayer, flatten_map, map_position_encoding

EncoderKind = Literal["light", "deformable"]
Sizes = list[tuple[int, int]]
"""Height and width of each map of the pyramid, fine to coarse."""


class PixelEncoder(nn.Module):
    """Backbone maps -> visual tokens F_v. The paper's visual encoder is "a backbone with a transformer encoder on top
    of the backbone"; this is the transformer encoder.

    `deformable` is Deformable DETR's encoder (Zhu et al., 2021) over the tokens of four maps, whose strides
    are 2, 4, 8 and 16 times that of the masks (with masks at stride 4: 8, 16, 32 and 64). The paper names a transformer
    encoder without details.

    `light` applies self-attention to the coarsest of three such maps only and leaves the exchange between the scales to
    the feature pyramid. It needs far fewer operations than `deformable`.
    """

    def __init__(
        self,
        kind: EncoderKind,
        channels: dict[int, int],
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        layers: int,
        mask_stride: int = 4,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.strides = [mask_stride * factor for factor in ((2, 4, 8, 16) if kind == "deformable" else (2, 4, 8))]
        self.projections = nn.ModuleDict(
            {str(s): nn.Linear(channels[s], hidden_dim) for s in self.strides if s in channels}
        )
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_dim) for _ in self.strides)
        self.level_LD = nn.Parameter(torch.randn(len(self.strides), hidden_dim) * 0.02)
        if self.strides[-1] > 32:
            self.beyond = nn.Conv2d(channels[32], hidden_dim, 3, stride=2, padding=1)
        if kind == "deformable":
            self.layers = nn.ModuleList(
                DeformableLayer(hidden_dim, num_heads, ffn_dim, len(self.strides)) for _ in range(layers)
            )
        else:
            self.layers = nn.ModuleList(EncoderLayer(hidden_dim, num_heads, ffn_dim) for _ in range(layers))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def forward(self, maps: dict[int, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, Sizes]:
        """Backbone maps by stride -> visual tokens F_v [F, S, D], position encodings [S, D] and the maps' sizes."""
        visual_FSD, sizes = self.project(maps)
        position_SD = self.position_encoding(sizes)
        return self.encode(visual_FSD, position_SD, sizes), position_SD, sizes

    def project(self, maps: dict[int, torch.Tensor]) -> tuple[torch.Tensor, Sizes]:
        """Backbone maps by stride -> tokens before encoding [F, S, D] and the maps' sizes."""
        levels, sizes = [], []
        for stride, norm in zip(self.strides, self.norms, strict=True):
            if stride in maps:
                level_FSD = self.projections[str(stride)](flatten_map(maps[stride]))
                sizes.append(_map_size(maps[stride]))
            else:  # coarser than the backbone's last map; computed from that map
                beyond = self.beyond(maps[32])
                level_FSD = flatten_map(beyond)
                sizes.append(_map_size(beyond))
            levels.append(norm(level_FSD))
        return torch.cat(levels, dim=1), sizes

    def position_encoding(self, sizes: Sizes) -> torch.Tensor:
        """Position encoding plus level embedding [S, D] of every token."""
        dims = self.level_LD.shape[1]
        return torch.cat(
            [
                map_position_encoding(*size, dims, level_D.device) + level_D
                for size, level_D in zip(sizes, self.level_LD, strict=True)
            ]
        )

    def encode(self, visual_FSD: torch.Tensor, position_SD: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        """-> encoded tokens [F, S, D]."""
        if self.kind == "deformable":
            grid = SamplingGrid.from_sizes(sizes, visual_FSD.device)
            for layer in self.layers:
                visual_FSD = layer(visual_FSD, position_SD, grid)
            return visual_FSD
        coarsest = self.token_slice(sizes, self.strides[-1])
        coarsest_FSD = visual_FSD[:, coarsest]
        for layer in self.layers:
            coarsest_FSD = layer(coarsest_FSD, position_SD[coarsest])
        return torch.cat([visual_FSD[:, : coarsest.start], coarsest_FSD], dim=1)

    def token_slice(self, sizes: Sizes, stride: int) -> slice:
        """The slice of a frame's tokens that belongs to the map at `stride`."""
        counts = [height * width for height, width in sizes]
        level = self.strides.index(stride)
        return slice(sum(counts[:level]), sum(counts[: level + 1]))

    def memory_slice(self, sizes: Sizes) -> slice:
        """The tokens that the mask decoder attends to: all, or with `light` all but the finest map (a quarter)."""
        return slice(sizes[0][0] * sizes[0][1] if self.kind == "light" else 0, None)


def _map_size(map_FDHW: torch.Tensor) -> tuple[int, int]:
    height, width = map_FDHW.shape[-2:]
    return height, width
