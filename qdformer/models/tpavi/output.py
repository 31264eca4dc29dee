"""TPAVI's output.

Shapes: B clips, T frames, F = B * T, K logits per pixel, D hidden dimension, H W pixels, h w size of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class TPAVIOutput:
    """The logits, and what the audio-visual matching loss compares."""

    logits_BTKHW: torch.Tensor
    """One logit per pixel if there is one class; else C + 1, the first one of the background."""
    stage_maps_FDhw: list[torch.Tensor]
    """Z_i after ReLU of each stage in which the audio is fused. In the public code they are after ReLU as well, because
    the decoder applies it to them in place.
    """
    stage_audio_BTD: list[torch.Tensor]
    """The aligned audio features of these stages."""
