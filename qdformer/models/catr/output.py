"""CATR's output.

Shapes: B clips, T frames, N queries, C object classes, H W pixels of a mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass
class LayerOutput:
    """The predictions of one decoder layer for the queries of every frame."""

    class_logits_BTNC: torch.Tensor
    """C + 1 logits; the last one is "no object"."""
    mask_logits_BTNHW: torch.Tensor
    """At `mask_stride`."""


@dataclass
class CATROutput(LayerOutput):
    """The predictions of the last decoder layer."""

    auxiliary: list[LayerOutput] = field(default_factory=list)
    """The predictions of the earlier decoder layers, in training mode."""
