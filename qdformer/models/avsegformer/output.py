"""AVSegFormer's output.

Shapes: B clips, T frames, K logits of a pixel, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class AVSegFormerOutput:
    """Logits of the pixels, and the mixed mask features' own mask for the auxiliary loss."""

    logits_BTKHW: torch.Tensor
    """At `output_stride`. K = 1 with one class: the sounding objects; otherwise index 0 is the background."""
    mixed_BTHW: torch.Tensor
    """Mean of the mixed mask features over the channels, at `mask_stride`: logits of the sounding objects."""
