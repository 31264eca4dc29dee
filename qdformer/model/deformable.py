"""Deformable DETR's encoder layer, from transformers, on any device.

Shapes: F frames, S tokens of a frame (all levels), D width. Importing this module imports transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrEncoderLayer


def deformable_layer(width: int, heads: int, ffn_width: int, levels: int) -> nn.Module:
    """One encoder layer: each token samples 4 points of each level around itself (no dropout, as elsewhere here)."""
    layer = DeformableDetrEncoderLayer(
        DeformableDetrConfig(
            d_model=width,
            encoder_attention_heads=heads,
            encoder_ffn_dim=ffn_width,
            num_feature_levels=levels,
            dropout=0.0,
            activation_dropout=0.0,
            disable_custom_kernels=True,
        )
    )
    attention = layer.self_attn
    nn.init.zeros_(attention.sampling_offsets.weight)
    nn.init.zeros_(attention.attention_weights.weight)
    nn.init.zeros_(attention.attention_weights.bias)
    # The first offsets of each head point outwards in its own direction, point k at distance k + 1 (Zhu et al., 2021).
    angle_H = torch.arange(heads) * (2 * torch.pi / heads)
    direction_H2 = torch.stack([angle_H.cos(), angle_H.sin()], dim=-1)
    direction_H2 = direction_H2 / direction_H2.abs().amax(-1, keepdim=True)
    distance_K = torch.arange(1, attention.n_points + 1)
    offsets = direction_H2[:, None, None] * distance_K[:, None].expand(levels, -1, 1)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(offsets.flatten())
    return layer


def sampling_arguments(
    sizes: list[tuple[int, int]], tokens_FSD: torch.Tensor, position_SD: torch.Tensor
) -> dict[str, Any]:
    """What every layer needs beside its tokens: where they lie, in each level."""
    device = tokens_FSD.device
    centres = [
        torch.cartesian_prod(
            (torch.arange(height, device=device) + 0.5) / height, (torch.arange(width, device=device) + 0.5) / width
        ).flip(-1)
        for height, width in sizes
    ]
    reference_SL2 = torch.cat(centres)[:, None].expand(-1, len(sizes), -1)
    return {
        "spatial_position_embeddings": position_SD,
        "reference_points": reference_SL2.expand(len(tokens_FSD), -1, -1, -1),
        "spatial_shapes": torch.tensor(sizes, device=device),
        "spatial_shapes_list": sizes,
    }
