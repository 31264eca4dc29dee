"""TPAVI's output.

Shapes: B clips, T frames, F = B * T, D hidden dimension, h w size of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qdformer.models.common.pixel_method import PixelOutput


@dataclass
class TPAVIOutput(PixelOutput):
    """The logits, and what the audio-visual matching loss compares."""

    stage_maps_FDhw: list[torch.Tensor]
    """Z_i after ReLU of each stage in which the audio is fused. In the public code they are after ReLU as well, because
    the decoder applies it to them in place.
    """
    stage_audio_BTD: list[torch.Tensor]
    """The aligned audio features of these stages."""
