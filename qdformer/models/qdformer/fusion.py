"""Audio-visual fusion, Eq. 3: F'_a = LN(FFN(h_a) + h_a), h_a = LN(MCA(F_a, F_v) + F_a).

Shapes: B clips, T frames, S visual tokens of a frame, D hidden dimension.
"""

from __future__ import annotations

import torch
from torch import nn

from qdformer.models.common.transformer import Attention, FeedForward, sine_position_encoding


class Fusion(nn.Module):
    """The audio feature of each frame attends to visual tokens of all frames; a feed-forward network follows.

    The paper does not specify the visual tokens; those of one map (at `fusion_stride`) of every frame are used. An
    encoding of the frame's time is added to queries and keys.
    """

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention = Attention(hidden_dim, num_heads)
        self.feed_forward = FeedForward(hidden_dim, ffn_dim)

    def forward(
        self, audio_BTD: torch.Tensor, visual_BTSD: torch.Tensor, position_SD: torch.Tensor, valid_BT: torch.Tensor
    ) -> torch.Tensor:
        """-> F'_a of the same shape as F_a: [B, T, D], or [B, T, V, D] for V separated tracks per frame.

        Frames where `valid_BT` is false are masked.
        """
        _, T, S, D = visual_BTSD.shape
        second_TD = sine_position_encoding(torch.arange(T, device=audio_BTD.device) / 10, D)
        memory_position = (second_TD[:, None] + position_SD).flatten(0, 1)
        padding_BM = ~valid_BT.repeat_interleave(S, dim=1)
        sounds = audio_BTD.flatten(1, -2)
        attended = self.attention(
            sounds,
            visual_BTSD.flatten(1, 2),
            second_TD.repeat_interleave(sounds.shape[1] // T, dim=0),
            memory_position,
            padding_BM,
        )
        return self.feed_forward(attended).view_as(audio_BTD)
