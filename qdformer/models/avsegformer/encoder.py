"""AVSegFormer's transformer encoder and the mask features made from its output.

Shapes: F frames, S tokens of a frame (all maps, fine to coarse, each in row order), D hidden dimension, H W size of the
mask features.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.deformable import DeformableLayer, SamplingGrid
from qdformer.models.common.transformer import flatten_map, grid_position_encoding, unflatten_map, upsample

GROUP_CHANNELS = 8
"""Channels of each group of the group normalizations; 32 groups with the published number of channels."""


class Encoder(nn.Module):
    """Deformable self-attention over the tokens of the backbone's maps that are coarser than the mask features.

    With `mask_stride` 4 these are the maps at strides 8, 16 and 32, as published. The mask features are the encoded
    tokens of the finest of them, upsampled and added to the backbone's map at `mask_stride`, then a 3x3 convolution.
    """

    def __init__(
        self, channels: dict[int, int], mask_stride: int, hidden_dim: int, num_heads: int, ffn_dim: int, layers: int
    ) -> None:
        super().__init__()
        self.mask_stride = mask_stride
        self.strides = [stride for stride in sorted(channels) if stride > mask_stride]
        self.projections = nn.ModuleDict(
            {str(stride): _projection(channels[stride], hidden_dim) for stride in (mask_stride, *self.strides)}
        )
        self.level_LD = nn.Parameter(torch.empty(len(self.strides), hidden_dim))
        self.layers = nn.ModuleList(
            DeformableLayer(hidden_dim, num_heads, ffn_dim, len(self.strides), "gelu") for _ in range(layers)
        )
        self.lateral = _projection(hidden_dim, hidden_dim)
        self.smooth = nn.Sequential(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1), _norm(hidden_dim), nn.ReLU())

    def forward(self, maps: dict[int, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Backbone maps by stride -> encoded tokens [F, S, D] and mask features [F, D, H, W]."""
        projected = [self.projections[str(stride)](maps[stride]) for stride in self.strides]
        sizes = [(level.shape[2], level.shape[3]) for level in projected]
        tokens_FSD = torch.cat([flatten_map(level) for level in projected], dim=1)
        position_SD = torch.cat(
            [_position_encoding(*size, level_D) for size, level_D in zip(sizes, self.level_LD, strict=True)]
        )
        grid = SamplingGrid.from_sizes(sizes, tokens_FSD.device)
        for layer in self.layers:
            tokens_FSD = layer(tokens_FSD, position_SD, grid)
        finest_FDHW = self.lateral(self.projections[str(self.mask_stride)](maps[self.mask_stride]))
        encoded = unflatten_map(tokens_FSD[:, : math.prod(sizes[0])], sizes[0])
        return tokens_FSD, self.smooth(finest_FDHW + upsample(encoded, finest_FDHW.shape[-2:]))


class Mixer(nn.Module):
    """Dense audio-visual mixer: the audio feature of a frame attends to its mask features, and the result, between 0
    and 1 after a linear layer and the sigmoid function, scales the channels of the mask features.
    """

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(hidden_dim, num_heads, batch_first=True)

    def forward(self, mask_features_FDHW: torch.Tensor, audio_F1D: torch.Tensor) -> torch.Tensor:
        tokens_FSD = flatten_map(mask_features_FDHW)
        attended_F1D, _ = self.attention(audio_F1D, tokens_FSD, tokens_FSD, need_weights=not audio_F1D.is_cuda)
        return mask_features_FDHW * attended_F1D.sigmoid().movedim(1, -1)[..., None]


class MaskHead(nn.Module):
    """Logits: M = FC(F + MLP(F * Q)) for the queries Q and the mixed mask features F.

    F * Q has one channel for each query, which the MLP of three 1x1 convolutions reduces to those of F. FC is three
    convolutions, with an upsampling by `scale` after the first.
    """

    def __init__(self, hidden_dim: int, ffn_dim: int, num_queries: int, outputs: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.mlp = nn.Sequential(
            nn.Conv2d(num_queries, ffn_dim, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(ffn_dim, ffn_dim, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(ffn_dim, hidden_dim, 1),
        )
        self.narrow = nn.Conv2d(hidden_dim, hidden_dim // 2, 3, padding=1)
        self.smooth = nn.Conv2d(hidden_dim // 2, hidden_dim // 8, 3, padding=1)
        self.out = nn.Conv2d(hidden_dim // 8, outputs, 1, bias=False)

    def forward(self, queries_FQD: torch.Tensor, mask_features_FDHW: torch.Tensor) -> torch.Tensor:
        """-> logits [F, outputs, H * scale, W * scale]."""
        size = mask_features_FDHW.shape[-2:]
        by_query_FQHW = unflatten_map(flatten_map(mask_features_FDHW) @ queries_FQD.mT, (size[0], size[1]))
        x = self.narrow(mask_features_FDHW + self.mlp(by_query_FQHW))
        x = upsample(x, [side * self.scale for side in size])
        return self.out(functional.relu(self.smooth(x)))


def _projection(channels: int, hidden_dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, hidden_dim, 1), _norm(hidden_dim))


def _norm(hidden_dim: int) -> nn.GroupNorm:
    return nn.GroupNorm(hidden_dim // GROUP_CHANNELS, hidden_dim)


def _position_encoding(height: int, width: int, level_D: torch.Tensor) -> torch.Tensor:
    """Position encoding plus level embedding [height * width, D]; positions count cells from 1, without scaling."""
    y, x = (torch.arange(1, size + 1, device=level_D.device) / (2 * math.pi) for size in (height, width))
    return grid_position_encoding(y, x, len(level_D)) + level_D
