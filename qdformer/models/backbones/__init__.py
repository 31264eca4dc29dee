"""Backbones: feature maps of each frame at strides 4, 8, 16 and 32.

Shapes: F frames, H W pixels; the size of a map is rounded up if the stride does not divide the size of the frame.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdformer.models.backbones.base import Backbone
from qdformer.models.backbones.weights import BackboneError, Weights, read_weights

if TYPE_CHECKING:
    from qdformer.config.methods.base import MethodSettings

__all__ = ["Backbone", "BackboneError", "build_backbone"]


def build_backbone(settings: MethodSettings) -> Backbone:
    """The backbone of the settings, with their pretrained weights or, without any, random ones.

    With pretrained weights, the stem and the first `frozen_stages` stages are frozen. Raises `BackboneError` if the
    weights are not available or do not fit the backbone.
    """
    weights: Weights | None = None
    if settings.backbone_weights is not None:
        weights = read_weights(settings.backbone_weights, settings.backbone_sha256)
    if settings.backbone == "efficientnet_lite0":
        from qdformer.models.backbones.efficientnet import EfficientNetLite0

        backbone: Backbone = EfficientNetLite0(weights)
    else:
        from qdformer.models.backbones import from_transformers  # imports transformers, which takes seconds

        backbone = from_transformers.build(settings.backbone, weights)
    if weights is not None and settings.frozen_stages:
        backbone.freeze(settings.frozen_stages)
    backbone.freeze_maps_except(settings.map_strides)
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
