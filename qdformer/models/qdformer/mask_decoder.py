"""Semantic-guided mask decoder, Eq. 7: M_i,t = f_t^out * theta_i,t, where * denotes the dynamic convolution and
theta_i,t = phi_segm(TrD_segm(VQ(l_i,t) | f_v,t)).

Shapes: F frames, N queries, R decoder layers (or 1), S visual tokens, P pixels and H W size of the mask,
D hidden dimension, C object classes, M mask channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from qdformer.models.common.transformer import MLP, DecoderLayer

CONDINST_CHANNELS = 8
"""Hidden channels of CondInst's three layers."""
BOX_PRIOR = (0.5, 0.5, 0.4, 0.4)
MASK_PRIOR = 0.1
"""Initial predictions of the box (center and size) and of the mask probability."""


@dataclass
class MaskDecoderOutput:
    """Predictions of the queries after each of the R decoder layers."""

    class_logits_RFNC: torch.Tensor
    """C + 1 logits, the last for "no object"."""
    boxes_RFN4: torch.Tensor
    """Center x, center y, width and height, relative to the frame."""
    mask_logits_RFNHW: torch.Tensor


class MaskDecoder(nn.Module):
    """Queries attend to each other and to the visual features of the frame (TrD_segm). phi_segm, an MLP of two layers,
    computes from each query the dynamic filter theta_i,t, which is applied to the mask features f_t^out. Two more MLPs
    of two layers predict the class probabilities P_i,t and the box B_i,t.

    With `linear`, a filter is one 1x1 convolution. With `condinst` (Tian et al., 2020) it is three 1x1 convolutions
    with 8 hidden channels, applied to the mask features and the coordinates relative to the center of the query's box.
    """

    def __init__(
        self,
        hidden_dim: int,
        num_heads: int,
        ffn_dim: int,
        layers: int,
        num_classes: int,
        mask_dim: int,
        mask_head: Literal["linear", "condinst"],
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(hidden_dim, num_heads, ffn_dim) for _ in range(layers))
        self.classify = MLP(hidden_dim, hidden_dim, num_classes + 1, layers=2)
        self.box = MLP(hidden_dim, hidden_dim, 4, layers=2)
        self.mask_head = mask_head
        m, h = mask_dim, CONDINST_CHANNELS
        self.filter_shapes = [(1, m)] if mask_head == "linear" else [(h, m + 2), (h, h), (1, h)]
        self.filter = MLP(hidden_dim, hidden_dim, sum(rows * (columns + 1) for rows, columns in self.filter_shapes), 2)
        self._start_from_priors()

    def _start_from_priors(self) -> None:
        nn.init.zeros_(self.filter.last.bias)
        with torch.no_grad():
            self.box.last.bias.copy_(torch.logit(torch.tensor(BOX_PRIOR)))
            self.filter.last.bias[-1] = torch.logit(torch.tensor(MASK_PRIOR))

    def forward(
        self,
        queries_FND: torch.Tensor,
        memory_FSD: torch.Tensor,
        memory_position_SD: torch.Tensor,
        mask_features_FMHW: torch.Tensor,
        all_layers: bool,
    ) -> MaskDecoderOutput:
        """Predictions after the last decoder layer, or with `all_layers` after each.

        Queries have no learned position embeddings, unlike DETR's. With them, queries differ even if the tokens do not,
        and the tokens of a clip become nearly identical.
        """
        outputs = []
        for layer in self.layers:
            queries_FND = layer(queries_FND, memory_FSD, memory_position_MD=memory_position_SD)
            outputs.append(queries_FND)
        queries_RFND = torch.stack(outputs if all_layers else outputs[-1:])
        boxes_RFN4 = self.box(queries_RFND).float().sigmoid()
        return MaskDecoderOutput(
            class_logits_RFNC=self.classify(queries_RFND).float(),
            boxes_RFN4=boxes_RFN4,
            mask_logits_RFNHW=self.predict_masks(
                self.filter(queries_RFND), boxes_RFN4.detach(), mask_features_FMHW
            ).float(),
        )

    def predict_masks(
        self, filters_RFNX: torch.Tensor, boxes_RFN4: torch.Tensor, mask_features_FMHW: torch.Tensor
    ) -> torch.Tensor:
        """Dynamic filters -> mask logits [R, F, N, H, W]."""
        R, F, N, _ = filters_RFNX.shape
        height, width = mask_features_FMHW.shape[-2:]
        # Frames first, then layers and queries side by side: all filters of a frame share its features.
        filters = filters_RFNX.transpose(0, 1).flatten(1, 2)
        layers = self._split(filters)
        x_FMP = mask_features_FMHW.flatten(2)
        if self.mask_head == "linear":
            weight, bias = layers[0]
            logits = weight.flatten(1, 2) @ x_FMP + bias
        else:
            x_FMP = torch.cat([x_FMP, _grid(height, width, x_FMP).expand(F, -1, -1)], dim=1)
            (weight, bias), *rest = layers
            # Coordinates relative to the center: moving the origin only changes the first layer's bias.
            center_FQ2 = boxes_RFN4[..., :2].transpose(0, 1).flatten(1, 2).to(weight.dtype)
            bias = bias - (weight[..., -2:] @ center_FQ2[..., None]).squeeze(-1)
            x = (weight.flatten(1, 2) @ x_FMP).unflatten(1, bias.shape[1:]) + bias[..., None]
            for weight, bias in rest:
                x = weight @ x.relu() + bias[..., None]
            logits = x
        return logits.reshape(F, R, N, height, width).transpose(0, 1)

    def _split(self, filters_FQX: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Weight [F, Q, out, in] and bias [F, Q, out] of each layer."""
        layers = []
        for rows, columns in self.filter_shapes:
            weight, bias, filters_FQX = filters_FQX.split(
                [rows * columns, rows, filters_FQX.shape[-1] - rows * (columns + 1)], dim=-1
            )
            layers.append((weight.unflatten(-1, (rows, columns)), bias))
        return layers


def _grid(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """x and y [2, P] of each pixel's center, relative to the frame."""
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)]).flatten(1)
