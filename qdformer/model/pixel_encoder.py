"""Pixel encoder: one pyramid of visual tokens per frame, related to each other by a transformer encoder.

Shapes: F frames, S tokens of a frame (its maps one after the other, fine to coarse, each in row order), D width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from qdformer.model.transformer import EncoderLayer, map_code, tokens

Sizes = list[tuple[int, int]]
"""Height and width of each map of the pyramid, fine to coarse."""


class PixelEncoder(nn.Module):
    """Backbone maps -> visual tokens F_v (`project`) -> encoded tokens (`forward`).

    `deformable` is the paper's encoder: Deformable DETR's layers (Zhu et al., 2021) over strides 8, 16, 32 and 64.
    `dense` lets the tokens of strides 16 and 32 of a frame all see each other and leaves stride 8 as projected; on a
    CPU, where sampling costs more than arithmetic, a training step of it takes a fraction of the time.
    """

    def __init__(
        self,
        kind: Literal["dense", "deformable"],
        channels: dict[int, int],
        width: int,
        heads: int,
        ffn_width: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.strides = [8, 16, 32, 64] if kind == "deformable" else [8, 16, 32]
        self.encoded = 0 if kind == "deformable" else 1
        self.projections = nn.ModuleDict({str(s): nn.Linear(channels[s], width) for s in self.strides if s in channels})
        if kind == "deformable":
            self.beyond = nn.Conv2d(channels[32], width, 3, stride=2, padding=1)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.strides)
        self.level_LD = nn.Parameter(torch.randn(len(self.strides), width) * 0.02)
        if kind == "deformable":
            from qdformer.model.deformable import deformable_layer  # transformers takes seconds to import

            self.layers = nn.ModuleList(
                deformable_layer(width, heads, ffn_width, len(self.strides)) for _ in range(layers)
            )
        else:
            self.layers = nn.ModuleList(EncoderLayer(width, heads, ffn_width) for _ in range(layers))

    def project(self, maps: dict[int, torch.Tensor]) -> tuple[torch.Tensor, Sizes]:
        """Backbone maps by stride -> visual tokens F_v [F, S, D] and the maps' sizes."""
        levels, sizes = [], []
        for stride, norm in zip(self.strides, self.norms, strict=True):
            if stride in maps:
                level_FSD = self.projections[str(stride)](tokens(maps[stride]))
                sizes.append(tuple(maps[stride].shape[-2:]))
            else:  # coarser than the backbone's last map, from which it is made
                beyond = self.beyond(maps[32])
                level_FSD = tokens(beyond)
                sizes.append(tuple(beyond.shape[-2:]))
            levels.append(norm(level_FSD))
        return torch.cat(levels, dim=1), sizes

    def positions(self, sizes: Sizes) -> torch.Tensor:
        """Position and level code [S, D] of every token."""
        dims = self.level_LD.shape[1]
        return torch.cat(
            [
                map_code(*size, dims, level_D.device) + level_D
                for size, level_D in zip(sizes, self.level_LD, strict=True)
            ]
        )

    def forward(self, visual_FSD: torch.Tensor, position_SD: torch.Tensor, sizes: Sizes) -> torch.Tensor:
        """-> encoded tokens [F, S, D]."""
        skipped = self.skipped(sizes)
        encoded_FSD, position_SD = visual_FSD[:, skipped:], position_SD[skipped:]
        if self.kind == "deformable":
            from qdformer.model.deformable import sampling_arguments

            arguments = sampling_arguments(sizes, encoded_FSD, position_SD)
            for layer in self.layers:
                encoded_FSD = layer(encoded_FSD, attention_mask=None, **arguments)
        else:
            for layer in self.layers:
                encoded_FSD = layer(encoded_FSD, position_SD)
        return torch.cat([visual_FSD[:, :skipped], encoded_FSD], dim=1) if skipped else encoded_FSD

    def span(self, sizes: Sizes, stride: int) -> slice:
        """Where the tokens of the map at `stride` lie among a frame's."""
        counts = [height * width for height, width in sizes]
        level = self.strides.index(stride)
        return slice(sum(counts[:level]), sum(counts[: level + 1]))

    def skipped(self, sizes: Sizes) -> int:
        """How many tokens of a frame, the finest, the encoder leaves as they are."""
        return sum(height * width for height, width in sizes[: self.encoded])
