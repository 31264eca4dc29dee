"""AVSegFormer's training objective: L = L_IoU + lambda L_mix.

Shapes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdformer.models.common.pixel_method import PixelCriterion

if TYPE_CHECKING:
    from qdformer.models.avsegformer.output import AVSegFormerOutput
    from qdformer.models.common.pixels import PixelTargets

DICE_EPSILON = 0.001
"""Added to the squared size of each of the two masks."""


class Criterion(PixelCriterion):
    """`mask`: the main loss L_IoU of the logits. `mix`: the mixing loss L_mix of the mean channel of the mixed mask
    features.

    With one class, both are the Dice loss, or with `kind` "bce" binary cross-entropy; the authors' code has both and
    uses the first. With several classes, L_IoU is the cross-entropy and L_mix the Dice loss of the union of the
    classes. The logits are upsampled to the size of the labels. Each loss is the mean over the frames with ground
    truth. Pixels without a label are left out.
    """

    def mask_loss(self, logits_YKHW: torch.Tensor, targets: PixelTargets, output: AVSegFormerOutput) -> torch.Tensor:
        if logits_YKHW.shape[1] > 1:
            return targets.cross_entropy(logits_YKHW)
        return self._binary_loss(logits_YKHW, targets)

    def further_losses(
        self, output: AVSegFormerOutput, targets: PixelTargets, valid_BT: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        mixed_Y1HW = targets.at_labels(output.mixed_BTHW[:, :, None].float())
        return {"mix": self.settings.mix * targets.mean(self._binary_loss(mixed_Y1HW, targets))}

    def _binary_loss(self, logits_Y1HW: torch.Tensor, targets: PixelTargets) -> torch.Tensor:
        if self.settings.kind == "bce":
            return targets.cross_entropy(logits_Y1HW)
        return targets.squared_dice(logits_Y1HW[:, 0], DICE_EPSILON)
