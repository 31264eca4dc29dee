"""Backbones: four feature maps of each frame, from weights pretrained on ImageNet.

Shapes: F frames, H W pixels; maps at strides 4, 8, 16 and 32 are rounded up for sizes that do not divide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdformer.models.backbones.base import Backbone
from qdformer.models.backbones.weights import BackboneError, Weights, read_weights

if TYPE_CHECKING:
    from qdformer.config.model import MethodSettings

__all__ = ["Backbone", "BackboneError", "build_backbone"]


def build_backbone(settings: MethodSettings) -> Backbone:
    """The backbone that the settings name, with the weights they name (none: drawn at random).

    Of pretrained weights, the stem and the first `frozen_stages` stages are not trained. Raises `BackboneError` if the
    weights cannot be had, or are not this backbone's.
    """
    weights: Weights | None = None
    if settings.backbone_weights is not None:
        weights = read_weights(settings.backbone_weights, settings.backbone_sha256)
    if settings.backbone == "efficientnet_lite0":
        from qdformer.models.backbones.efficientnet import EfficientNetLite0

        backbone: Backbone = EfficientNetLite0(weights)
    else:
        from qdformer.models.backbones import from_transformers  # takes seconds to import

        backbone = from_transformers.build(settings.backbone, weights)
    if weights is not None and settings.frozen_stages:
        backbone.freeze(settings.frozen_stages)
    return backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
