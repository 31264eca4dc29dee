"""Semantic decomposition of audio features into N tokens, Eq. 4 (clip) and Eq. 6 (frame).

Shapes: B clips, or frames, N prototypes, M audio tokens of the memory, D hidden dimension.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.transformer import DecoderLayer


class SemanticDecoder(nn.Module):
    """Audio semantic decoder: a transformer decoder with the prototypes p_i as queries and audio features as memory.

    Global, Eq. 4: g_i = TrD_global(p_i | F'_a), on all frames of a clip. Local, Eq. 6: l_i,t = TrD_local(p_i | f_a,t),
    on one frame. Each decoder has its own layers.

    As in DETR, the prototypes are also added to queries and keys in every layer. Without this, the N tokens of a clip
    become nearly identical.
    """

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(hidden_dim, num_heads, ffn_dim) for _ in range(layers))

    def forward(
        self, prototypes_ND: torch.Tensor, memory_BMD: torch.Tensor, padding_BM: torch.Tensor | None = None
    ) -> torch.Tensor:
        """-> tokens [B, N, D]. Memory tokens where `padding_BM` is true are masked."""
        tokens_BND = prototypes_ND.expand(len(memory_BMD), -1, -1)
        for layer in self.layers:
            tokens_BND = layer(tokens_BND, memory_BMD, prototypes_ND, padding_BM=padding_BM)
        return tokens_BND


def mean_cosine_similarity(tokens_BND: torch.Tensor) -> torch.Tensor:
    """Mean cosine similarity between different tokens of a clip; 1 if all are equal."""
    N = tokens_BND.shape[1]
    unit_BND = functional.normalize(tokens_BND.detach().float(), dim=-1)
    return (unit_BND.sum(1).square().sum(-1) - N).mean() / max(N * (N - 1), 1)
