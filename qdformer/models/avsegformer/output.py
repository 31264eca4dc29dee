"""AVSegFormer's output.

Shapes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qdformer.models.common.pixel_method import PixelOutput


@dataclass
class AVSegFormerOutput(PixelOutput):
    """Logits of the pixels, and the mixed mask features' own mask for the auxiliary loss."""

    mixed_BTHW: torch.Tensor
    """Mean of the mixed mask features over the channels, at `mask_stride`: logits of the sounding objects."""
