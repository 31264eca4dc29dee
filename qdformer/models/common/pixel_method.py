"""What the methods that classify pixels share: their interface, output and training objective.

Shapes: B clips, T frames, A audio features (128), K logits of a pixel, H W pixels, Y labeled frames.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdformer.models.backbones import build_backbone
from qdformer.models.common.method import Method, Prediction, check_inputs
from qdformer.models.common.pixels import PixelTargets, predict_pixels

if TYPE_CHECKING:
    from qdformer.config.methods.base import MethodSettings


@dataclass
class PixelOutput:
    """What the methods that classify pixels compute; further fields are what their losses need."""

    logits_BTKHW: torch.Tensor
    """At `output_stride`. K = 1 with one class: the sounding objects; otherwise index 0 is the background."""


class PixelMethod(Method):
    """A backbone, and layers of the method's own that compute K logits of each pixel from its maps and the audio.

    A method implements `segment`. If it has losses beside that of the pixels, its `build_criterion` returns a
    `PixelCriterion` of its own.
    """

    output_stride: int = 1
    """Stride of the logits."""

    def __init__(self, settings: MethodSettings, num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes
        self.backbone = build_backbone(settings)

    def forward(
        self,
        images_BTCHW: torch.Tensor,
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor | None = None,
        maps: dict[int, torch.Tensor] | None = None,
    ) -> PixelOutput:
        """See `Method`."""
        frames = check_inputs(images_BTCHW, audio_BTA)
        if valid_BT is None:
            valid_BT = torch.ones(frames, dtype=torch.bool, device=images_BTCHW.device)
        if maps is None:
            maps = self.backbone_maps(images_BTCHW)
        return self.segment(maps, audio_BTA, valid_BT, (images_BTCHW.shape[-2], images_BTCHW.shape[-1]))

    @abstractmethod
    def segment(
        self,
        maps: dict[int, torch.Tensor],
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor,
        frame_size: tuple[int, int],
    ) -> PixelOutput:
        """The output from the backbone's maps of all frames [B * T, C, h, w], by stride."""

    def build_criterion(self, loss: Any) -> nn.Module:
        return PixelCriterion(loss, self.num_classes)

    def decode(self, output: PixelOutput, frame_size: tuple[int, int]) -> Prediction:
        """See `predict_pixels`."""
        return predict_pixels(output.logits_BTKHW.float(), frame_size, self.output_stride, output)


class PixelCriterion(nn.Module):
    """The loss `mask` of the pixels (`PixelTargets.structure`), and the further losses of a method.

    Each is a mean over frames. With several ranks, each of them returns its share of the losses of the global batch.
    """

    def __init__(self, settings: Any, num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes

    def forward(
        self, output: Any, labels_BTHW: torch.Tensor, valid_BT: torch.Tensor, labeled_BT: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The weighted losses by name, and their sum as `total`.

        Labels are class ids 0..C or 255 (ignored); raises `InputError` for others.
        """
        with torch.autocast(labels_BTHW.device.type, enabled=False):
            targets = PixelTargets.of(labels_BTHW, valid_BT, labeled_BT, self.num_classes)
            logits_YKHW = targets.at_labels(output.logits_BTKHW.float())
            losses = {"mask": self.settings.mask * targets.mean(self.mask_loss(logits_YKHW, targets, output))}
            losses |= self.further_losses(output, targets, valid_BT)
            return losses | {"total": torch.stack(list(losses.values())).sum()}

    def mask_loss(self, logits_YKHW: torch.Tensor, targets: PixelTargets, output: Any) -> torch.Tensor:
        """The loss of each labeled frame, [Y], from the logits at the size of the labels."""
        return targets.structure(logits_YKHW)

    def further_losses(self, output: Any, targets: PixelTargets, valid_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        """The weighted losses of the method beside `mask`, by name."""
        return {}
