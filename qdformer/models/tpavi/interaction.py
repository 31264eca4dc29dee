"""Temporal pixel-wise audio-visual interaction (TPAVI).

Shapes: B clips, T frames, F = B * T, S positions of a map of size h w, D hidden dimension, E = D / 2, A audio
features (128).
"""

from __future__ import annotations

import torch
from torch import nn

from qdformer.models.common.norm import TokenBatchNorm
from qdformer.models.common.transformer import flatten_map, unflatten_map
from qdformer.utils.constants import EMBEDDING_SIZE


class PixelwiseInteraction(nn.Module):
    """Z_i = V_i + mu(alpha_i g(V_i)) with alpha_i = theta(V_i) phi(A)^T / N, where the audio A of a frame stands at
    each of its positions, and N = T S counts the positions of the clip. theta, phi, g and mu are 1x1x1 convolutions;
    batch normalization follows mu, and layer normalization the sum, as in the public code. A clip with more than
    `window` frames is divided into clips of this length, as the public code does with the ten frames of AVSS.

    Differences from the public code:

    - phi(A) is the same at all positions of a frame. So alpha_i g(V_i) = theta(V_i) M, with the E x E matrix
      M = 1/T sum_t phi(a_t)^T mean_s g(v_t,s), and the T S x T S matrix alpha_i is never computed. The result is the
      same.
    - Padding frames have no part in M, N and the statistics of batch normalization. The public code for AVSS counts
      them in all three, as frames of zeros; a window of its data is either filled or empty.
    """

    def __init__(self, hidden_dim: int, audio_bias: bool, window: int) -> None:
        super().__init__()
        inner = hidden_dim // 2
        self.window = window
        self.align = nn.Linear(EMBEDDING_SIZE, hidden_dim, bias=audio_bias)
        self.g = nn.Linear(hidden_dim, inner)
        self.theta = nn.Linear(hidden_dim, inner)
        self.phi = nn.Linear(hidden_dim, inner)
        self.mu = nn.Linear(inner, hidden_dim)
        self.batch_norm = TokenBatchNorm(hidden_dim)
        nn.init.zeros_(self.batch_norm.weight)
        self.layer_norm = nn.LayerNorm(hidden_dim)

    def forward(
        self, visual_BTSD: torch.Tensor, audio_BTA: torch.Tensor, valid_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> Z_i [B, T, S, D] and the aligned audio features [B, T, D]."""
        aligned_BTD = self.align(audio_BTA)
        windows = [x.split(self.window, 1) for x in (visual_BTSD, self.phi(aligned_BTD), valid_BT)]
        attended_BTSE = torch.cat([self._attend(*window) for window in zip(*windows, strict=True)], 1)
        return self.layer_norm(visual_BTSD + self.batch_norm(self.mu(attended_BTSE), valid_BT)), aligned_BTD

    def fuse(
        self, map_FDhw: torch.Tensor, audio_BTA: torch.Tensor, valid_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Z_i of a map of all frames, as a map, and the aligned audio features [B, T, D]."""
        size = (map_FDhw.shape[-2], map_FDhw.shape[-1])
        fused_BTSD, aligned_BTD = self(flatten_map(map_FDhw).unflatten(0, valid_BT.shape), audio_BTA, valid_BT)
        return unflatten_map(fused_BTSD.flatten(0, 1), size), aligned_BTD

    def _attend(self, visual_BTSD: torch.Tensor, phi_BTE: torch.Tensor, valid_BT: torch.Tensor) -> torch.Tensor:
        """alpha_i g(V_i) of one window [B, T, S, E]."""
        share_BT = valid_BT / valid_BT.sum(1, keepdim=True).clamp(min=1)
        visual_BTD = visual_BTSD.mean(2)  # the mean of g is g of the mean
        mixing_BEE = (phi_BTE * share_BT[..., None]).transpose(1, 2) @ self.g(visual_BTD)
        return (self.theta(visual_BTSD).flatten(1, 2) @ mixing_BEE).unflatten(1, visual_BTSD.shape[1:3])
