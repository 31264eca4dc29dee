"""Audio-visual semantic recombination (AVSR), Eq. 5: F'_v = BN(phi(w_1 F_v (+) .. (+) w_N F_v) + F_v).

Shapes: B clips, N tokens, S visual tokens (of all frames), D hidden dimension.
"""

from __future__ import annotations

import torch
from torch import nn


class Recombination(nn.Module):
    """Filters w_i, one factor per channel, modulate the visual features F_v; a 1x1 convolution phi reduces the N
    concatenated maps to D channels.

    The paper makes the filters from the tokens g_i by two linear layers and normalizes by batch norm; here one linear
    layer and layer norm are used. The paper's text names both g_i and VQ(g_i) as the input; `filters_from` chooses.

    With phi = [W_1 .. W_N], sum_i W_i (w_i * x) = (sum_i W_i diag(w_i)) x: one D x D matrix per clip is enough.
    """

    def __init__(self, hidden_dim: int, tokens: int) -> None:
        super().__init__()
        self.filter = nn.Linear(hidden_dim, hidden_dim)
        self.join_NDD = nn.Parameter(torch.empty(tokens, hidden_dim, hidden_dim))
        bound = (tokens * hidden_dim) ** -0.5
        nn.init.uniform_(self.join_NDD, -bound, bound)
        self.bias_D = nn.Parameter(torch.zeros(hidden_dim))
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, visual_BSD: torch.Tensor, tokens_BND: torch.Tensor) -> torch.Tensor:
        """-> F'_v [B, S, D]."""
        return self.norm(visual_BSD + torch.baddbmm(self.bias_D, visual_BSD, self.matrix(tokens_BND)))

    def matrix(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        """The matrix of each clip, [B, D in, D out]."""
        return torch.einsum("bni,noi->bio", self.filter(tokens_BND), self.join_NDD)
