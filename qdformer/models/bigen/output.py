"""Bi-Gen's output.

Shapes: B clips, T frames, F = B * T, A audio features (128), D hidden dimension, h w size of a map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qdformer.models.bigen.modules import VisualToAudio
from qdformer.models.tpavi.output import TPAVIOutput


@dataclass
class BiGenOutput(TPAVIOutput):
    """TPAVI's output, and what the reconstruction of the audio features needs."""

    coarsest_FDhw: torch.Tensor
    """The map of the fourth stage after the estimation of motion."""
    audio_BTA: torch.Tensor
    """The audio features that are to be reconstructed."""
    to_audio: VisualToAudio
