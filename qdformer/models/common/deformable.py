"""Multi-scale deformable attention (Zhu et al., 2021, Deformable DETR): each token attends to a few points per level.

Shapes: F frames, S tokens of a frame (all levels, fine to coarse), R the same with a border of one cell around each
level, D hidden dimension, H heads, E = D / H, L levels, K points, X = L * K.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from qdformer.models.common.transformer import Activation, FeedForward

NUM_POINTS = 4
"""Sampling points per head and level."""


@dataclass
class SamplingGrid:
    """The positions of the tokens of a feature pyramid; the same for every frame and layer."""

    sizes: list[tuple[int, int]]
    """Height and width of each level."""
    x_SX: torch.Tensor
    """x of each token in each level, in cells of that level; 0 is the center of the first cell."""
    y_SX: torch.Tensor
    width_X: torch.Tensor
    height_X: torch.Tensor
    start_X: torch.Tensor
    """Index of each level's first cell among the R."""

    @classmethod
    def from_sizes(cls, sizes: list[tuple[int, int]], device: torch.device) -> SamplingGrid:
        heights, widths = torch.tensor(sizes, device=device).repeat_interleave(NUM_POINTS, dim=0).unbind(-1)
        starts = torch.tensor([(height + 2) * (width + 2) for height, width in sizes], device=device).cumsum(0)
        y_S, x_S = torch.cat(
            [
                torch.cartesian_prod(
                    (torch.arange(height, device=device) + 0.5) / height,
                    (torch.arange(width, device=device) + 0.5) / width,
                )
                for height, width in sizes
            ]
        ).unbind(-1)
        return cls(
            sizes=sizes,
            x_SX=x_S[:, None] * widths - 0.5,
            y_SX=y_S[:, None] * heights - 0.5,
            width_X=widths,
            height_X=heights,
            start_X=functional.pad(starts[:-1], (1, 0)).repeat_interleave(NUM_POINTS),
        )


class DeformableAttention(nn.Module):
    """Residual deformable self-attention followed by layer normalization.

    The output of a head is a weighted sum of cells, four for each sampling point. It is computed by `embedding_bag`,
    which on a CPU is several times faster than `grid_sample`.
    """

    def __init__(self, hidden_dim: int, num_heads: int, levels: int) -> None:
        super().__init__()
        self.num_heads, self.levels = num_heads, levels
        self.offsets = nn.Linear(hidden_dim, num_heads * levels * NUM_POINTS * 2)
        self.weights = nn.Linear(hidden_dim, num_heads * levels * NUM_POINTS)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        for linear in (self.offsets, self.weights):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        # The first offsets of each head point outwards in its own direction, point k at distance k + 1.
        angle_H = torch.arange(num_heads) * (2 * torch.pi / num_heads)
        direction_2H = torch.stack([angle_H.cos(), angle_H.sin()])
        direction_2H = direction_2H / direction_2H.abs().amax(0)
        distance_X = torch.arange(1, NUM_POINTS + 1).repeat(levels)
        with torch.no_grad():
            self.offsets.bias.copy_((direction_2H[..., None] * distance_X).flatten())

    def forward(self, x_FSD: torch.Tensor, position_SD: torch.Tensor, grid: SamplingGrid) -> torch.Tensor:
        """`position_SD` is added to the queries, not to the values."""
        query_FSD, value_FSD = x_FSD + position_SD, self.value(x_FSD)
        offsets_2FSHX = self.offsets(query_FSD).unflatten(-1, (2, self.num_heads, -1)).movedim(-3, 0)
        weights_FSHX = self.weights(query_FSD).unflatten(-1, (self.num_heads, -1)).float().softmax(-1)
        with torch.autocast(x_FSD.device.type, enabled=False):  # half precision would shift the sampling points
            found_FSD = self.sample(value_FSD.float(), offsets_2FSHX.float(), weights_FSHX, grid)
        return self.norm(x_FSD + self.out(found_FSD))

    def sample(
        self, value_FSD: torch.Tensor, offsets_2FSHX: torch.Tensor, weights_FSHX: torch.Tensor, grid: SamplingGrid
    ) -> torch.Tensor:
        """Weighted bilinear samples [F, S, D] at `offsets_2FSHX` (x and y, in cells) from each token's position.

        Values outside of a level are zero, by a border of one cell around each level.
        """
        bordered_FRD = torch.cat(
            [
                functional.pad(level_FCD.unflatten(1, size), (0, 0, 1, 1, 1, 1)).flatten(1, 2)
                for size, level_FCD in zip(
                    grid.sizes, value_FSD.split([height * width for height, width in grid.sizes], 1), strict=True
                )
            ],
            dim=1,
        )
        F, R, _ = bordered_FRD.shape
        H = self.num_heads
        x_FSHX, x0_FSHX = _clamp(offsets_2FSHX[0] + grid.x_SX[:, None], grid.width_X)
        y_FSHX, y0_FSHX = _clamp(offsets_2FSHX[1] + grid.y_SX[:, None], grid.height_X)
        right_FSHX, low_FSHX = x_FSHX - x0_FSHX, y_FSHX - y0_FSHX
        below_FSHX = weights_FSHX * low_FSHX
        above_FSHX = weights_FSHX - below_FSHX
        above_right_FSHX, below_right_FSHX = above_FSHX * right_FSHX, below_FSHX * right_FSHX
        shares_FSH4X = torch.stack(
            [above_FSHX - above_right_FSHX, above_right_FSHX, below_FSHX - below_right_FSHX, below_right_FSHX], dim=-2
        )
        row_X = (grid.width_X + 2).int()
        cell_FSHX = (y0_FSHX.int() + 1) * row_X + (x0_FSHX.int() + 1 + grid.start_X.int())
        frame_F = torch.arange(F, dtype=torch.int32, device=row_X.device)
        head_H = torch.arange(H, dtype=torch.int32, device=row_X.device)
        entry_FSHX = (cell_FSHX + frame_F[:, None, None, None] * R) * H + head_H[:, None]
        corners_4X = torch.stack([torch.zeros_like(row_X), torch.ones_like(row_X), row_X, row_X + 1]) * H
        entries_FSH4X = entry_FSHX[..., None, :] + corners_4X
        found = _WeightedSum.apply(
            bordered_FRD.view(F * R * H, -1),
            entries_FSH4X.flatten(0, 2).flatten(1),
            shares_FSH4X.flatten(0, 2).flatten(1),
        )
        return found.view(F, -1, value_FSD.shape[-1])


def _clamp(position: torch.Tensor, size_X: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions clamped to the border, and the index of the last cell at or before each of them."""
    position = position.clamp(min=-1).minimum(size_X.to(position.dtype))
    return position, position.detach().floor().minimum(size_X - 1.0)


class _WeightedSum(torch.autograd.Function):
    """Sums [G, E] of the rows `entries` [G, X] of `values` [V, E], with the weights `shares` [G, X].

    The gradient of the values is a weighted sum of the sums' gradients. Computed by `embedding_bag`, it takes a third
    of the time of torch's own backward pass.
    """

    @staticmethod
    def forward(ctx, values: torch.Tensor, entries: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(values, entries, shares)
        return functional.embedding_bag(entries, values, mode="sum", per_sample_weights=shares)

    @staticmethod
    @once_differentiable
    def backward(ctx, sums: torch.Tensor) -> tuple[torch.Tensor, None, torch.Tensor]:
        values, entries, shares = ctx.saved_tensors
        sums = sums.contiguous()
        chosen, order = entries.flatten().sort(stable=True)
        starts = torch.searchsorted(chosen, torch.arange(len(values), dtype=chosen.dtype, device=chosen.device))
        to_values = functional.embedding_bag(
            order // entries.shape[1], sums, starts, mode="sum", per_sample_weights=shares.flatten()[order]
        )
        with torch.enable_grad():
            shares = shares.detach().requires_grad_()
            again = functional.embedding_bag(entries, values.detach(), mode="sum", per_sample_weights=shares)
            (to_shares,) = torch.autograd.grad(again, shares, sums)
        return to_values, None, to_shares


class DeformableLayer(nn.Module):
    """Deformable self-attention and feed-forward, the layer of the paper's transformer encoder."""

    def __init__(
        self, hidden_dim: int, num_heads: int, ffn_dim: int, levels: int, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        self.attention = DeformableAttention(hidden_dim, num_heads, levels)
        self.feed_forward = FeedForward(hidden_dim, ffn_dim, activation)

    def forward(self, x_FSD: torch.Tensor, position_SD: torch.Tensor, grid: SamplingGrid) -> torch.Tensor:
        return self.feed_forward(self.attention(x_FSD, position_SD, grid))
