"""CATR's encoder: the decoupled audio-video transformer, the gate over its blocks, and the mask features.

Shapes: B clips, T frames, S visual tokens of a frame, X = S + T tokens of a frame's picture and of the clip's audio,
D hidden dimension, F = B * T frames of all clips, H W size of a map.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.norm import TokenBatchNorm
from qdformer.models.common.transformer import EncoderLayer, flatten_map, unflatten_map


class SpatialLayer(EncoderLayer):
    """Self-attention and feed-forward network, with padding."""

    def forward(
        self, x_FXD: torch.Tensor, position_XD: torch.Tensor, padding_FX: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.feed_forward(self.self_attention(x_FXD, x_FXD, position_XD, position_XD, padding_FX))


class Block(nn.Module):
    """A block of the decoupled audio-video transformer.

    Spatial: self-attention and a feed-forward network over the visual tokens of a frame together with the audio tokens
    of all frames of the clip. Visual tokens have a position encoding and audio tokens have none, as in the authors'
    code.

    Temporal: V' = V * MCA(V, A), then A' = A * MCA(A, V'), where V are the visual and A the audio tokens of all frames
    of the clip, MCA is multi-head cross-attention and * the elementwise product.

    Differences from the authors' code, which multiplies with MCA(V, A) twice: one product, as in the referring video
    segmentation from which it comes; and the audio token of a frame continues from that frame's own joint sequence
    instead of the first frame's. The last block has no A', which nothing would read.
    """

    def __init__(self, hidden_dim: int, num_heads: int, ffn_dim: int, last: bool) -> None:
        super().__init__()
        self.spatial = SpatialLayer(hidden_dim, num_heads, ffn_dim)
        self.audio_to_video = nn.MultiheadAttention(hidden_dim, num_heads, batch_first=True)
        self.video_to_audio = None if last else nn.MultiheadAttention(hidden_dim, num_heads, batch_first=True)

    def forward(
        self,
        visual_BTSD: torch.Tensor,
        audio_BTD: torch.Tensor,
        position_SD: torch.Tensor,
        attended_BT: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        B, T, S, _ = visual_BTSD.shape
        joint_FXD = self.spatial(*join(visual_BTSD, audio_BTD, position_SD, attended_BT))
        visual_BMD = joint_FXD[:, :S].reshape(B, T * S, -1)
        audio_BTD = own_audio(joint_FXD[:, S:].unflatten(0, (B, T)))
        visual_BMD = visual_BMD * _attend(self.audio_to_video, visual_BMD, audio_BTD, audio_BTD, ~attended_BT)
        if self.video_to_audio is not None:
            key_BMD = visual_BMD + position_SD.repeat(T, 1)
            padding_BM = ~attended_BT.repeat_interleave(S, dim=1)
            audio_BTD = audio_BTD * _attend(self.video_to_audio, audio_BTD, key_BMD, visual_BMD, padding_BM)
        return visual_BMD.unflatten(1, (T, S)), audio_BTD


def join(
    visual_BTSD: torch.Tensor, audio_BTD: torch.Tensor, position_SD: torch.Tensor, attended_BT: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The joint sequence of each frame [F, X, D], its position encoding [X, D], and its padding [F, X]."""
    B, T, S, D = visual_BTSD.shape
    audio_FTD = audio_BTD[:, None].expand(B, T, T, D).flatten(0, 1)
    padding_FT = (~attended_BT)[:, None].expand(B, T, T).flatten(0, 1)
    return (
        torch.cat([visual_BTSD.flatten(0, 1), audio_FTD], dim=1),
        functional.pad(position_SD, (0, 0, 0, T)),
        functional.pad(padding_FT, (S, 0), value=False),
    )


def own_audio(audio_BTTD: torch.Tensor) -> torch.Tensor:
    """The audio tokens of all frames in the joint sequence of each -> the token of each frame in its own, [B, T, D]."""
    return audio_BTTD.diagonal(dim1=1, dim2=2).movedim(-1, 1)


class BlockGate(nn.Module):
    """Blockwise-encoding gate: adds the visual features of the blocks, each with a weight between 0 and 1.

    g_l = mean(sigmoid(conv([V_{l-1}, V_l]))) and F_l = PReLU(BN(conv(F_{l-1} + g_l V_l))) for l = 2 .. L, with F_1 = 0;
    one number g_l for each frame. A single block passes unchanged.

    In the authors' code the convolution of the gate has two outputs, of which the first gate uses the first and the
    second gate the mean of both; here it has one.
    """

    def __init__(self, hidden_dim: int, blocks: int) -> None:
        super().__init__()
        if blocks > 1:
            self.gate = nn.Conv2d(2 * hidden_dim, 1, 3, padding=1)
        self.refine = nn.ModuleList(nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1) for _ in range(blocks - 1))
        self.norms = nn.ModuleList(TokenBatchNorm(hidden_dim) for _ in self.refine)
        self.activations = nn.ModuleList(nn.PReLU() for _ in self.refine)

    def forward(self, visual: list[torch.Tensor], size: tuple[int, int], valid_BT: torch.Tensor) -> torch.Tensor:
        """The visual tokens [B, T, S, D] after each block -> map [F, D, *size]."""
        maps = [unflatten_map(x_BTSD.flatten(0, 1), size) for x_BTSD in visual]
        gated_FDHW = maps[0]
        for index, (refine, norm, activate) in enumerate(zip(self.refine, self.norms, self.activations, strict=True)):
            weight_F111 = self.gate(torch.cat(maps[index : index + 2], dim=1)).sigmoid().mean((1, 2, 3), keepdim=True)
            added_FDHW = weight_F111 * maps[index + 1] + (gated_FDHW if index else 0)
            refined_BTSD = flatten_map(refine(added_FDHW)).unflatten(0, valid_BT.shape)
            gated_FDHW = activate(unflatten_map(norm(refined_BTSD, valid_BT).flatten(0, 1), size))
        return gated_FDHW


class SpatialDecoder(nn.Module):
    """Feature pyramid with half as many channels after each step -> mask features.

    Each step upsamples the map to the next finer one of the backbone, adds that after a 1x1 convolution, and smooths
    the sum. In the authors' code the fused map has stride 8, is reduced to the size of stride 32, and then added to the
    maps of strides 32 and 16, which gives masks of stride 16; here the maps finer than the fused one are added.
    """

    def __init__(self, hidden_dim: int, steps: int, mask_dim: int) -> None:
        super().__init__()
        widths = [hidden_dim // 2**step for step in range(steps + 2)]
        self.first = _smooth(hidden_dim, hidden_dim)
        self.smooth = nn.ModuleList(_smooth(wide, narrow) for wide, narrow in zip(widths, widths[1:], strict=False))
        self.lateral = nn.ModuleList(nn.Conv2d(hidden_dim, width, 1) for width in widths[1:-1])
        self.out = nn.Conv2d(widths[-1], mask_dim, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.bias is not None:
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, fused_FDHW: torch.Tensor, finer: list[torch.Tensor]) -> torch.Tensor:
        """`finer`: the maps [F, D, h, w] that are finer than the fused one, coarse to fine."""
        reduce, *rest = self.smooth
        x = reduce(self.first(fused_FDHW))
        for map_FDHW, lateral, smooth in zip(finer, self.lateral, rest, strict=True):
            x = smooth(lateral(map_FDHW) + functional.interpolate(x, size=map_FDHW.shape[-2:], mode="nearest"))
        return self.out(x)


def _attend(
    attention: nn.MultiheadAttention,
    query_BQD: torch.Tensor,
    key_BMD: torch.Tensor,
    value_BMD: torch.Tensor,
    padding_BM: torch.Tensor,
) -> torch.Tensor:
    attended_BQD, _ = attention(
        query_BQD, key_BMD, value_BMD, padding_BM, need_weights=not query_BQD.is_cuda, average_attn_weights=False
    )  # see `Attention` for `need_weights`
    return attended_BQD


def _smooth(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.GroupNorm(math.gcd(8, out_channels), out_channels),
        nn.ReLU(),
    )
