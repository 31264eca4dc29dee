"""Audio-visual semantic recombination (AVSR), Eq. 5.

Shapes: B clips, N tokens, S visual tokens (of all frames), D width.
"""

from __future__ import annotations

import torch
from torch import nn


class Recombination(nn.Module):
    """Filters made from the clip's single-source tokens modulate the visual features, and a convolution joins them.

    Token i gives a filter f_i with one factor per channel; the N modulated maps f_i * F_v, side by side, go through
    a 1x1 convolution W = [W_1 .. W_N] and are added to F_v. The paper's text makes the filters from g_i in one place
    and from VQ(g_i) in another: VQ(g_i) is taken, whatever of it is quantized.

    As sum_i W_i (f_i * x) = (sum_i W_i diag(f_i)) x, one D x D matrix per clip does the work of the N maps.
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
        """-> F_v' [B, S, D]."""
        return self.norm(visual_BSD + torch.baddbmm(self.bias_D, visual_BSD, self.matrix(tokens_BND)))

    def matrix(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        """The clip's recombining matrix [B, D in, D out]."""
        return torch.einsum("bni,noi->bio", self.filter(tokens_BND), self.join_NDD)
