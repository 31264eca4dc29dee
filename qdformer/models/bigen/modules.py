"""Bi-Gen's parts: the fusion of audio and picture, the estimation of motion, and the reconstruction of the audio.

Shapes: B clips, T frames, F = B * T, S positions of a map of size h w, D hidden dimension, A audio features (128).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.transformer import flatten_map
from qdformer.utils.constants import EMBEDDING_SIZE


class CorrelationFusion(nn.Module):
    """V + V sigmoid(conv(V a)): a gate for each position from the products of its features V and the audio's a.

    Both are normalized to length 1. The convolutions are 1x1, 7x7 and 1x1, without activations between them and without
    biases. In the public code, the audio features have as many channels as the maps and are used as they are; here a
    linear layer projects them.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        narrow = hidden_dim // 4
        self.align = nn.Linear(EMBEDDING_SIZE, hidden_dim)
        self.gate = nn.Sequential(
            nn.Conv2d(hidden_dim, narrow, 1, bias=False),
            nn.Conv2d(narrow, narrow, 7, padding=3, bias=False),
            nn.Conv2d(narrow, 1, 1, bias=False),
        )

    def fuse(
        self, map_FDhw: torch.Tensor, audio_BTA: torch.Tensor, _valid_BT: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The fused map and the normalized audio features [B, T, D]."""
        audio_BTD = functional.normalize(self.align(audio_BTA), dim=-1)
        visual_FDhw = functional.normalize(map_FDhw, dim=1)
        gate_F1hw = self.gate(visual_FDhw * audio_BTD.flatten(0, 1)[..., None, None]).sigmoid()
        return visual_FDhw + visual_FDhw * gate_F1hw, audio_BTD


class MotionAttention(nn.Module):
    """Implicit volumetric motion estimation: V_t + V_t sigmoid(w c_t + b) with the correlation c_t of each position.

    The volume relu(V_t^T V_t+1) compares each position of a frame with each of the next one; c_t is its mean over the
    positions of the next frame. The last frame is compared with the one before it, and a clip of one frame with itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Conv2d(1, 1, 1)

    def forward(self, map_FDhw: torch.Tensor, valid_BT: torch.Tensor) -> torch.Tensor:
        B, T = valid_BT.shape
        tokens_BTSD = flatten_map(map_FDhw).unflatten(0, (B, T))
        clip_B1 = torch.arange(B, device=map_FDhw.device)[:, None]
        compared_BTSD = tokens_BTSD[clip_B1, neighbors(valid_BT)]
        volume_BTSS = functional.relu(tokens_BTSD @ compared_BTSD.transpose(2, 3), inplace=True)
        motion_F1hw = volume_BTSS.mean(-1).flatten(0, 1).unflatten(1, map_FDhw.shape[-2:])[:, None]
        return map_FDhw + map_FDhw * self.scale(motion_F1hw).sigmoid()


def neighbors(valid_BT: torch.Tensor) -> torch.Tensor:
    """The index of the frame with which each frame is compared [B, T]; padding frames are not compared with others."""
    frame_T = torch.arange(valid_BT.shape[1], device=valid_BT.device)
    has_next_BT = functional.pad(valid_BT[:, 1:], (0, 1)) & valid_BT
    has_previous_BT = functional.pad(valid_BT[:, :-1], (1, 0)) & valid_BT
    return torch.where(has_next_BT, frame_T + 1, torch.where(has_previous_BT, frame_T - 1, frame_T))


class VisualToAudio(nn.Module):
    """Visual-to-audio projection: convolutions of the masked map, and a weighted sum over its positions.

    The convolutions are 1x1, 3x3 and 1x1, without activations between them and without biases. The number of positions
    is fixed: a map of another size is first averaged (or repeated) to `size` x `size`. It is 7 x 7 in the public code,
    whose frames always have 224 x 224 pixels.
    """

    def __init__(self, hidden_dim: int, size: int) -> None:
        super().__init__()
        narrow = hidden_dim // 2
        self.size = size
        self.encode = nn.Sequential(
            nn.Conv2d(hidden_dim, narrow, 1, bias=False),
            nn.Conv2d(narrow, narrow, 3, padding=1, bias=False),
            nn.Conv2d(narrow, EMBEDDING_SIZE, 1, bias=False),
        )
        self.gather = nn.Linear(size * size, 1)

    def forward(self, map_FDhw: torch.Tensor, mask_F1HW: torch.Tensor) -> torch.Tensor:
        """The reconstructed audio features [F, A]."""
        mask_F1hw = functional.adaptive_avg_pool2d(mask_F1HW, (map_FDhw.shape[-2], map_FDhw.shape[-1]))
        masked_FDss = functional.adaptive_avg_pool2d(map_FDhw * mask_F1hw, self.size)
        return self.gather(self.encode(masked_FDss).flatten(2)).squeeze(-1)
