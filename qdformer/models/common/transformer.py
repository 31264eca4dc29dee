"""Transformer layers and position encodings.

Shapes: B batch entries, Q queries, M memory tokens, S tokens of a map, D hidden dimension.
As in DETR, layers are post-norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

Activation = Literal["relu", "gelu"]


class Attention(nn.Module):
    """Residual multi-head attention, then layer norm; position encodings are added to queries and keys only."""

    def __init__(self, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(hidden_dim, num_heads, batch_first=True)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(
        self,
        x_BQD: torch.Tensor,
        memory_BMD: torch.Tensor,
        position_QD: torch.Tensor | None = None,
        memory_position_MD: torch.Tensor | None = None,
        padding_BM: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`x_BQD` attends to `memory_BMD`; memory tokens where `padding_BM` is true are masked."""
        query_BQD = x_BQD if position_QD is None else x_BQD + position_QD
        key_BMD = memory_BMD if memory_position_MD is None else memory_BMD + memory_position_MD
        # With need_weights, torch uses plain matrix products instead of its fused kernel. In bfloat16 on a CPU the
        # backward pass of the fused kernel is several times slower; on a GPU it is faster.
        attended_BQD, _ = self.attention(
            query_BQD,
            key_BMD,
            memory_BMD,
            key_padding_mask=padding_BM,
            need_weights=not x_BQD.is_cuda,
            average_attn_weights=False,
        )
        return self.norm(x_BQD + attended_BQD)


class FeedForward(nn.Module):
    """Residual two-layer perceptron followed by layer normalization."""

    def __init__(self, hidden_dim: int, ffn_dim: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.activation = activation
        self.wide = nn.Linear(hidden_dim, ffn_dim)
        self.narrow = nn.Linear(ffn_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, x_BQD: torch.Tensor) -> torch.Tensor:
        wide = self.wide(x_BQD)
        wide = functional.relu(wide, inplace=True) if self.activation == "relu" else functional.gelu(wide)
        return self.norm(x_BQD + self.narrow(wide))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.self_attention = Attention(hidden_dim, num_heads)
        self.feed_forward = FeedForward(hidden_dim, ffn_dim)

    def forward(self, x_BSD: torch.Tensor, position_SD: torch.Tensor) -> torch.Tensor:
        return self.feed_forward(self.self_attention(x_BSD, x_BSD, position_SD, position_SD))


class DecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to a memory, feed-forward."""

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, activation: Activation = "relu") -> None:
        super().__init__()
        self.self_attention = Attention(hidden_dim, num_heads)
        self.cross_attention = Attention(hidden_dim, num_heads)
        self.feed_forward = FeedForward(hidden_dim, ffn_dim, activation)

    def forward(
        self,
        x_BQD: torch.Tensor,
        memory_BMD: torch.Tensor,
        position_QD: torch.Tensor | None = None,
        memory_position_MD: torch.Tensor | None = None,
        padding_BM: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x_BQD = self.self_attention(x_BQD, x_BQD, position_QD, position_QD)
        x_BQD = self.cross_attention(x_BQD, memory_BMD, position_QD, memory_position_MD, padding_BM)
        return self.feed_forward(x_BQD)


class MLP(nn.Sequential):
    """`layers` linear layers with ReLU between them."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, layers: int) -> None:
        sizes = [input_dim, *[hidden_dim] * (layers - 1), output_dim]
        parts: list[nn.Module] = []
        for index in range(layers):
            parts += [nn.Linear(sizes[index], sizes[index + 1]), nn.ReLU()]
        super().__init__(*parts[:-1])

    @property
    def last(self) -> nn.Linear:
        """The layer that computes the output."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer


class LinearBottleneck(nn.Sequential):
    """A linear map of rank `rank`; it starts as an orthogonal projection, which is the identity at full rank."""

    def __init__(self, dim: int, rank: int) -> None:
        narrow, wide = nn.Linear(dim, rank, bias=False), nn.Linear(rank, dim, bias=False)
        nn.init.orthogonal_(narrow.weight)
        with torch.no_grad():
            wide.weight.copy_(narrow.weight.T)
        super().__init__(narrow, wide)


def sine_position_encoding(positions_S: torch.Tensor, dims: int) -> torch.Tensor:
    """Sine and cosine encoding [S, dims] of positions in 0..1 (Vaswani et al., 2017), scaled by 2 pi as in DETR."""
    frequencies = 10000 ** (-torch.arange(0, dims, 2, device=positions_S.device) / dims)
    angles = 2 * math.pi * positions_S[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def map_position_encoding(height: int, width: int, dims: int, device: torch.device) -> torch.Tensor:
    """Position encoding [height * width, dims] of a map's cells in row order: half of it for y, half for x."""
    return grid_position_encoding(
        (torch.arange(height, device=device) + 0.5) / height, (torch.arange(width, device=device) + 0.5) / width, dims
    )


def grid_position_encoding(y_H: torch.Tensor, x_W: torch.Tensor, dims: int) -> torch.Tensor:
    """Position encoding [H * W, dims] of the points of a grid in row order: half of it for y, half for x."""
    y, x = sine_position_encoding(y_H, dims // 2), sine_position_encoding(x_W, dims // 2)
    shape = (len(y), len(x), dims // 2)
    return torch.cat([y[:, None].expand(shape), x[None].expand(shape)], dim=-1).flatten(0, 1)


def flatten_map(map_FDHW: torch.Tensor) -> torch.Tensor:
    """A map as tokens [F, H * W, D]; a channels-last map is not copied."""
    return map_FDHW.permute(0, 2, 3, 1).flatten(1, 2)


def unflatten_map(tokens_FSD: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The inverse of `flatten_map`: a channels-last map [F, D, *size]."""
    return tokens_FSD.unflatten(1, size).permute(0, 3, 1, 2)


def upsample(map_FDHW: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A map resized to `size` by bilinear interpolation."""
    return functional.interpolate(map_FDHW, size=size, mode="bilinear", align_corners=False)
