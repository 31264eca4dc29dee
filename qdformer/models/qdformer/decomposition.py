"""Semantic decomposition: mixed audio into N single-source tokens, Eq. 4 (clip) and Eq. 6 (frame).

Shapes: B clips, or frames, N prototypes, M audio tokens of the memory, D width.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.transformer import DecoderLayer


class SemanticDecoder(nn.Module):
    """A transformer decoder whose queries are the prototypes and whose memory is audio.

    Eq. 4 (global) reads the audio-visual features of the whole clip: {g_i} = D_global(F_av, {p_i}); Eq. 6 (local)
    those of one frame: {l_ti} = D_local(F_av,t, {p_i}). Both take the same prototypes and have their own layers.

    As object queries of DETR's descendants, the prototypes are added to queries and keys of every layer too: entering
    the first alone, they are forgotten, and the N tokens of a clip become one.
    """

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(hidden_dim, num_heads, ffn_dim) for _ in range(layers))

    def forward(
        self, prototypes_ND: torch.Tensor, memory_BMD: torch.Tensor, padding_BM: torch.Tensor | None = None
    ) -> torch.Tensor:
        """-> tokens [B, N, D]. Memory tokens where `padding_BM` is true are left out."""
        tokens_BND = prototypes_ND.expand(len(memory_BMD), -1, -1)
        for layer in self.layers:
            tokens_BND = layer(tokens_BND, memory_BMD, prototypes_ND, padding_BM=padding_BM)
        return tokens_BND


def mean_cosine_similarity(tokens_BND: torch.Tensor) -> torch.Tensor:
    """Mean cosine between different tokens of a clip: 1 where they are all one, nothing having been decomposed."""
    N = tokens_BND.shape[1]
    unit_BND = functional.normalize(tokens_BND.detach().float(), dim=-1)
    return (unit_BND.sum(1).square().sum(-1) - N).mean() / max(N * (N - 1), 1)
