"""Audio-visual semantic recombination (AVSR), Eq. 5: F'_v = BN(phi(w_1 F_v (+) .. (+) w_N F_v) + F_v).

Shapes: B clips, T frames, N tokens, S visual tokens of a frame, D hidden dimension.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from qdformer.models.common.norm import TokenBatchNorm
from qdformer.models.common.transformer import MLP


class Recombination(nn.Module):
    """Filters w_i, one factor per channel, modulate the visual features F_v; a convolution phi reduces the N
    concatenated maps to D channels.

    The paper makes the filters from the tokens "by two linear layers"; here ReLU stands between them. Its text names
    both g_i and VQ(g_i) as the tokens; `filters_from` chooses. The kernel of phi is not specified; here it is 1x1.

    With phi = [W_1 .. W_N], sum_i W_i (w_i * x) = (sum_i W_i diag(w_i)) x: one D x D matrix per clip is enough.
    """

    def __init__(self, hidden_dim: int, tokens: int, norm: Literal["batch", "layer"] = "batch") -> None:
        super().__init__()
        self.filter = MLP(hidden_dim, hidden_dim, hidden_dim, layers=2)
        self.join_NDD = nn.Parameter(torch.empty(tokens, hidden_dim, hidden_dim))
        bound = (tokens * hidden_dim) ** -0.5
        nn.init.uniform_(self.join_NDD, -bound, bound)
        self.bias_D = nn.Parameter(torch.zeros(hidden_dim))
        self.norm = TokenBatchNorm(hidden_dim) if norm == "batch" else nn.LayerNorm(hidden_dim)

    def forward(
        self, visual_BTSD: torch.Tensor, tokens_BND: torch.Tensor, valid_BT: torch.Tensor | None = None
    ) -> torch.Tensor:
        """-> F'_v [B, T, S, D]. Frames where `valid_BT` is false are left out of the statistics of batch norm."""
        visual_BSD = visual_BTSD.flatten(1, 2)
        joined_BSD = torch.baddbmm(self.bias_D, visual_BSD, self.matrix(tokens_BND))
        summed_BTSD = (visual_BSD + joined_BSD).view_as(visual_BTSD)
        if isinstance(self.norm, TokenBatchNorm):
            return self.norm(summed_BTSD, valid_BT)
        return self.norm(summed_BTSD)

    def matrix(self, tokens_BND: torch.Tensor) -> torch.Tensor:
        """The matrix of each clip, [B, D in, D out]."""
        return torch.einsum("bni,noi->bio", self.filter(tokens_BND), self.join_NDD)
