"""QDFormer's output.

Shapes: B clips, T frames, N queries, C object classes, D hidden dimension, H W mask pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from qdformer.models.qdformer.quantizer import QuantizerStats


@dataclass
class LayerOutput:
    """The predictions of one decoder layer for the queries of every frame."""

    class_logits_BTNC: torch.Tensor
    """C + 1 logits; the last one is "no object" (the object is silent or not visible in this frame)."""
    boxes_BTN4: torch.Tensor
    """Center x, center y, width and height, relative to the frame."""
    mask_logits_BTNHW: torch.Tensor
    """At stride 4."""


@dataclass
class QDFormerOutput(LayerOutput):
    """The predictions of the last decoder layer, and intermediate results."""

    auxiliary: list[LayerOutput] = field(default_factory=list)
    """The predictions of the earlier decoder layers, in training mode."""
    quantization: QuantizerStats | None = None
    valid_BT: torch.Tensor | None = None
    """The frames that exist; a clip without any is left out of all statistics."""
    fused_BTD: torch.Tensor | None = None
    """The audio features after fusion (F'_a, Eq. 3), before decomposition."""
    tokens_BND: torch.Tensor | None = None
    """The clip's semantic tokens g_i (Eq. 4) before quantization; None without decomposition."""
    local_tokens_BTND: torch.Tensor | None = None
    """The frames' semantic tokens l_i,t (Eq. 6) before quantization; None without local calibration."""
    token_class_logits_BNC: torch.Tensor | None = None
    """The class head's C + 1 logits for the clip's tokens VQ(g_i), in training mode; None without decomposition."""
    local_token_class_logits_BTNC: torch.Tensor | None = None
    """The same for the frames' tokens VQ(l_i,t); None without local calibration."""
