"""Bi-Gen's objective: L = L_mask + lambda_1 L_audio + lambda_2 L_AVM.

Shapes: B clips, T frames, F = B * T, A audio features (128), K logits of a pixel, H W pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from qdformer.models.common.pixel_method import PixelCriterion
from qdformer.models.common.pixels import PixelTargets, foreground_probs
from qdformer.models.tpavi.criterion import matching_loss
from qdformer.utils.distributed import sum_over_ranks

if TYPE_CHECKING:
    from qdformer.models.bigen.output import BiGenOutput


class Criterion(PixelCriterion):
    """`mask`: cross-entropy and weighted IoU of the pixels (`PixelTargets.structure`). `audio`: the Euclidean distance
    between the audio features and those reconstructed from the picture inside of the masks, both normalized to
    length 1. `avm`: TPAVI's matching loss of normalized features, not computed if its weight is 0.

    As in the public code, predicted masks are their logits if there is one class; with several classes, they are the
    probabilities of not being background. The labels are not smoothed by 0.001 as there.
    """

    def further_losses(
        self, output: BiGenOutput, targets: PixelTargets, valid_BT: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        losses = {"audio": self.settings.audio * self._reconstruction(output, targets, valid_BT)}
        if self.settings.avm:
            logits_FKHW = output.logits_BTKHW.flatten(0, 1).float()
            losses["avm"] = self.settings.avm * matching_loss(
                output, logits_FKHW, targets.counted_BT.flatten(), normalize=True
            )
        return losses

    def _reconstruction(self, output: BiGenOutput, targets: PixelTargets, valid_BT: torch.Tensor) -> torch.Tensor:
        """This rank's share of the mean over the valid frames, or with true masks over the labeled ones."""
        if self.settings.masks_from == "truth":
            counted_BT, mask_F1HW = targets.counted_BT, targets.masks_YHW[:, None]
        else:
            counted_BT, logits_FKHW = valid_BT, output.logits_BTKHW[valid_BT].float()
            mask_F1HW = logits_FKHW if logits_FKHW.shape[1] == 1 else foreground_probs(logits_FKHW)[:, None]
        made_FA = output.to_audio(output.coarsest_FDhw.unflatten(0, valid_BT.shape)[counted_BT].float(), mask_F1HW)
        audio_FA = output.audio_BTA[counted_BT].float()
        distance_F = functional.pairwise_distance(
            functional.normalize(made_FA, dim=-1), functional.normalize(audio_FA, dim=-1)
        )
        return distance_F.sum() / sum_over_ranks(counted_BT.sum()).clamp(min=1)
