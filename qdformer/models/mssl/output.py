"""MSSL's output.

Shapes: B clips, T frames, C object classes, E dimension of the alignment.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from qdformer.models.common.pixel_method import PixelOutput


@dataclass
class MSSLOutput(PixelOutput):
    """The logits, and what the losses of the two stages compare."""

    audio_class_BTC: torch.Tensor
    """Logits of the classes that sound."""
    visual_class_BTC: torch.Tensor
    """Logits of the classes of the picture that sound."""
    audio_BTD: torch.Tensor
    visual_BTD: torch.Tensor
    """Mean over the positions."""
    audio_BTCE: torch.Tensor
    """Features of each class in the sound, of length 1."""
    visual_BTCE: torch.Tensor
    """Features of each class in the picture, of length 1."""
    correspond: nn.Module
    """Logit of a picture and a sound that belong together, from the features of both [.., 2 D]."""
    stage_two: torch.Tensor
    """Whether the second stage has begun."""
