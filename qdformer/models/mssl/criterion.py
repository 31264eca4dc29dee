"""MSSL's objective: L = L_cls + L_avc in the first stage, and L_cls + L_avc + L_align + L_mask in the second.

Shapes: B clips, T frames, C object classes, D hidden dimension, E dimension of the alignment, Y labeled frames, P pairs
of a picture and its sound on this rank, Q pairs on all ranks, M = P * C and N = Q * C features of their classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from qdformer.models.common.localization import Pairs
from qdformer.models.common.pixel_method import PixelCriterion
from qdformer.utils.distributed import differentiable_gather, sum_over_ranks

if TYPE_CHECKING:
    from qdformer.models.common.pixels import PixelTargets
    from qdformer.models.mssl.output import MSSLOutput


class Criterion(PixelCriterion):
    """The losses of both stages.

    `audio_cls`, `visual_cls`: binary cross-entropy of each class. `correspondence`: that of picture and sound, with
    half of the weight on those that belong together and half on those of different clips. `align`: the mean square
    distance of the features of a class in a picture and in its sound, and the mean of max(0, margin - distance)^2 for
    all others, in both cases of the classes with a predicted probability above `present`. `mask`: the cross-entropy of
    the pixels.

    In the first stage, `align` and `mask` are multiplied by 0, so that all parameters have a gradient in each step.
    Frames that are known to have no sounding object are no pairs, and pairs of a clip's own frames are left out.
    """

    def mask_loss(self, logits_YKHW: torch.Tensor, targets: PixelTargets, output: MSSLOutput) -> torch.Tensor:
        return targets.cross_entropy(logits_YKHW) * output.stage_two

    def further_losses(
        self, output: MSSLOutput, targets: PixelTargets, valid_BT: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        pairs = Pairs.of(targets, valid_BT)
        losses = {
            "audio_cls": self._class_loss(output.audio_class_BTC, targets),
            "visual_cls": self._class_loss(output.visual_class_BTC, targets),
            "correspondence": self._correspondence(output, pairs),
            "align": self._align(output, pairs) * output.stage_two,
        }
        return {name: getattr(self.settings, name) * loss for name, loss in losses.items()}

    def _class_loss(self, logits_BTC: torch.Tensor, targets: PixelTargets) -> torch.Tensor:
        classes = torch.arange(1, self.num_classes + 1, device=logits_BTC.device)
        present_YC = (targets.labels_YHW[..., None] == classes).flatten(1, 2).any(1).float()
        logits_YC = logits_BTC[targets.counted_BT].float()
        loss_YC = functional.binary_cross_entropy_with_logits(logits_YC, present_YC, reduction="none")
        return targets.mean(loss_YC.mean(1))

    def _correspondence(self, output: MSSLOutput, pairs: Pairs) -> torch.Tensor:
        visual_PD = output.visual_BTD[pairs.chosen_BT].float()
        audio_QD = differentiable_gather(output.audio_BTD[pairs.chosen_BT].float())
        shape = (len(visual_PD), len(audio_QD), -1)
        both_PQD = torch.cat([audio_QD.expand(shape), visual_PD[:, None].expand(shape)], -1)
        logits_PQ = output.correspond(both_PQD).squeeze(-1)
        own, foreign = functional.softplus(-logits_PQ), functional.softplus(logits_PQ)
        return (_mean(own, pairs.own_PQ) + _mean(foreign, pairs.foreign_PQ)) / 2

    def _align(self, output: MSSLOutput, pairs: Pairs) -> torch.Tensor:
        chosen_BT, classes = pairs.chosen_BT, self.num_classes
        visual_ME = output.visual_BTCE[chosen_BT].float().flatten(0, 1)
        audio_NE = differentiable_gather(output.audio_BTCE[chosen_BT].float().flatten(0, 1))
        heard_N1 = differentiable_gather(output.audio_class_BTC[chosen_BT].detach().float().flatten()[:, None])
        seen_M1 = output.visual_class_BTC[chosen_BT].detach().float().flatten()[:, None]
        present_MN = (seen_M1.sigmoid() > self.settings.present) & (heard_N1.sigmoid() > self.settings.present).T
        same_CC = torch.eye(classes, dtype=torch.bool, device=chosen_BT.device)
        own_MN = (pairs.own_PQ[:, None, :, None] & same_CC[:, None]).flatten(2).flatten(0, 1)
        # Other classes of the same frame are negatives, as frames of other clips are.
        other_PQ = pairs.foreign_PQ[:, None, :, None] | (pairs.own_PQ[:, None, :, None] & ~same_CC[:, None])
        other_MN = other_PQ.flatten(2).flatten(0, 1)
        square_MN = (2 - 2 * visual_ME @ audio_NE.T).clamp(min=1e-6)
        apart_MN = functional.relu(self.settings.margin - square_MN.sqrt()).square()
        return _mean(square_MN, own_MN & present_MN) + _mean(apart_MN, other_MN & present_MN)


def _mean(loss: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """This rank's share of the mean over the chosen entries of all ranks."""
    return (loss * chosen).sum() / sum_over_ranks(chosen.sum()).clamp(min=1)
