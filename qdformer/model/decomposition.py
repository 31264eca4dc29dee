"""Semantic decomposition: mixed audio into N single-source tokens, Eq. 4 (clip) and Eq. 6 (frame).

Shapes: B clips, or frames, N prototypes, M audio tokens of the memory, D width.
"""

from __future__ import annotations

import torch
from torch import nn

from qdformer.model.transformer import DecoderLayer


class SemanticDecoder(nn.Module):
    """A transformer decoder whose queries are the prototypes and whose memory is audio.

    Eq. 4 (global) reads the audio-visual features of the whole clip: {g_i} = D_global(F_av, {p_i}); Eq. 6 (local)
    those of one frame: {l_ti} = D_local(F_av,t, {p_i}). Both take the same prototypes and have their own layers.
    """

    def __init__(self, width: int, heads: int, ffn_width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, ffn_width) for _ in range(layers))

    def forward(
        self, prototypes_ND: torch.Tensor, memory_BMD: torch.Tensor, padding_BM: torch.Tensor | None = None
    ) -> torch.Tensor:
        """-> tokens [B, N, D]. Memory tokens where `padding_BM` is true are left out."""
        tokens_BND = prototypes_ND.expand(len(memory_BMD), -1, -1)
        for layer in self.layers:
            tokens_BND = layer(tokens_BND, memory_BMD, padding_BM=padding_BM)
        return tokens_BND
