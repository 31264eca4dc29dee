"""Audio-visual fusion, Eq. 3: F_av = MCA(F_a, F_v).

Shapes: B clips, T frames, S visual tokens of a frame, A audio features (VGGish: 128), D width.
"""

from __future__ import annotations

import torch
from torch import nn

from qdformer.models.common.transformer import Attention, sine_position_encoding


class Fusion(nn.Module):
    """Each second's audio looks at the visual tokens of all frames by multi-head cross-attention.

    The paper does not say which visual tokens are meant: those of one map (`fusion_stride`) of every frame are used.
    A code of the second is added on both sides, so that a sound can tell its own frame from the others.
    """

    def __init__(self, audio_size: int, hidden_dim: int, num_heads: int) -> None:
        super().__init__()
        self.project = nn.Linear(audio_size, hidden_dim)
        self.attention = Attention(hidden_dim, num_heads)

    def forward(
        self, audio_BTA: torch.Tensor, visual_BTSD: torch.Tensor, position_SD: torch.Tensor, valid_BT: torch.Tensor
    ) -> torch.Tensor:
        """-> F_av [B, T, D]; or of several sounds in each second, [B, T, N, A], their F_av [B, T, N, D].

        Frames where `valid_BT` is false are not looked at.
        """
        _, T, S, D = visual_BTSD.shape
        second_TD = sine_position_encoding(torch.arange(T, device=audio_BTA.device) / 10, D)
        memory_position = (second_TD[:, None] + position_SD).flatten(0, 1)
        padding_BM = ~valid_BT.repeat_interleave(S, dim=1)
        audio = self.project(audio_BTA)
        sounds = audio.flatten(1, -2)
        return self.attention(
            sounds,
            visual_BTSD.flatten(1, 2),
            second_TD.repeat_interleave(sounds.shape[1] // T, dim=0),
            memory_position,
            padding_BM,
        ).view_as(audio)
