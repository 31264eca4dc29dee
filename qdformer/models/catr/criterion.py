"""CATR's training objective: Hungarian matching by class and Dice, then losses of class, Dice, focal and BCE.

Shapes: L decoder layers, B clips, T frames, N queries, G targets of a clip (padded), C object classes, P mask pixels,
J matched pairs of a query and a target, over all layers and clips.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.matcher import match
from qdformer.models.common.targets import Targets, build_targets
from qdformer.utils.distributed import sum_over_ranks

if TYPE_CHECKING:
    from qdformer.config.methods.catr import CATRLoss
    from qdformer.models.catr.output import CATROutput

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
"""Weight of the foreground and exponent of the focal loss (Lin et al., 2017)."""


class Criterion(nn.Module):
    """Matches queries to targets over the whole clip, as MTTR (Botach et al., 2022) does, and computes the losses.

    The cost of a pair is -p(class) and minus the Dice coefficient, each the mean over the labeled frames. A matched
    query must predict its class in the frames in which the target is present and "no object" in the others; all other
    queries must predict "no object", with the weight `no_object`. The class loss is summed over the queries. The losses
    of the mask are those of each frame, as means over the pixels and over the targets' labeled frames.

    Differences from the authors' code: masks are compared at their own stride instead of the labels' size, and BCE is
    that of the logits; the code applies the sigmoid function twice.
    """

    def __init__(self, settings: CATRLoss, num_classes: int, mask_stride: int) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes
        self.mask_stride = mask_stride

    def forward(
        self, output: CATROutput, labels_BTHW: torch.Tensor, valid_BT: torch.Tensor, labeled_BT: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The weighted losses by name, and their sum as `total`.

        `cls`, `dice`, `focal` and `bce` are the losses of the last decoder layer, `auxiliary` is the sum of the losses
        of the earlier layers. Raises `InputError` for class ids that the model does not have.
        """
        settings = self.settings
        layers = [*output.auxiliary, output] if settings.auxiliary else [output]
        with torch.autocast(labels_BTHW.device.type, enabled=False):
            targets = build_targets(labels_BTHW, valid_BT & labeled_BT, self.num_classes, self.mask_stride)
            class_logits_LBTNC = torch.stack([layer.class_logits_BTNC for layer in layers])
            masks_LBNTP = torch.stack([layer.mask_logits_BTNHW for layer in layers]).flatten(-2).transpose(2, 3)
            matched_LBN = self._match(class_logits_LBTNC, masks_LBNTP, targets)
            by_layer = {"cls": settings.cls * self._class_loss(class_logits_LBTNC, matched_LBN, targets)}
            by_layer |= self._mask_losses(masks_LBNTP, matched_LBN, targets)
        losses = {name: loss_L[-1] for name, loss_L in by_layer.items()}
        if len(layers) > 1:
            losses["auxiliary"] = torch.stack([loss_L[:-1].sum() for loss_L in by_layer.values()]).sum()
        return losses | {"total": torch.stack(list(losses.values())).sum()}

    @torch.no_grad()
    def _match(self, class_logits_LBTNC: torch.Tensor, masks_LBNTP: torch.Tensor, targets: Targets) -> torch.Tensor:
        """Index of the target of each query, -1 for none: [L, B, N]."""
        L, B, T, N, _ = class_logits_LBTNC.shape
        labeled_BT, present_BGT = targets.labeled_BT.float(), targets.present_BGT.float()
        index = targets.classes_BG[None, :, None, None].expand(L, B, T, N, -1)
        probs_LBTNG = class_logits_LBTNC.softmax(-1).gather(-1, index)
        frames_BG = present_BGT.sum(-1).clamp(min=1)
        class_LBNG = torch.einsum("lbtng,bgt->lbng", probs_LBTNG, present_BGT) / frames_BG[:, None]
        soft_LBNTP = masks_LBNTP.sigmoid() * targets.weights_BTP[:, None]
        masks_BGTP = targets.masks_BGTP * targets.weights_BTP[:, None]
        joint_LBNGT = 2 * torch.einsum("lbntp,bgtp->lbngt", soft_LBNTP, masks_BGTP)
        sizes_LBNGT = soft_LBNTP.sum(-1)[:, :, :, None] + masks_BGTP.sum(-1)[:, None]
        dice_LBNGT = (joint_LBNGT + 1) / (sizes_LBNGT + 1)
        share_BT = labeled_BT / labeled_BT.sum(-1, keepdim=True).clamp(min=1)
        dice_LBNG = torch.einsum("lbngt,bt->lbng", dice_LBNGT, share_BT)
        cost_LBNG = -(self.settings.match_cls * class_LBNG + self.settings.match_dice * dice_LBNG)
        matched_EN = match(cost_LBNG.flatten(0, 1), targets.is_real_BG.sum(1).tolist() * L)
        return matched_EN.view(L, B, N).to(masks_LBNTP.device)

    def _class_loss(
        self, class_logits_LBTNC: torch.Tensor, matched_LBN: torch.Tensor, targets: Targets
    ) -> torch.Tensor:
        """Cross-entropy [L], summed over the queries: the mean over the frames with ground truth of all ranks."""
        wanted_LBTN = matched_LBN.new_full(class_logits_LBTNC.shape[:-1], self.num_classes)
        layer_J, clip_J, query_J = (matched_LBN >= 0).nonzero(as_tuple=True)
        target_J = matched_LBN[layer_J, clip_J, query_J]
        class_JT = targets.classes_BG[clip_J, target_J][:, None]
        wanted_LBTN[layer_J, clip_J, :, query_J] = class_JT.where(
            targets.present_BGT[clip_J, target_J], self.num_classes
        )
        loss_LBTN = functional.cross_entropy(class_logits_LBTNC.movedim(-1, 1), wanted_LBTN, reduction="none")
        weights_LBTN = torch.where(matched_LBN >= 0, 1.0, self.settings.no_object)[:, :, None]
        loss_LBT = (loss_LBTN * weights_LBTN).sum(-1) * targets.labeled_BT
        return loss_LBT.sum((1, 2)) / sum_over_ranks(targets.labeled_BT.sum()).clamp(min=1)

    def _mask_losses(
        self, masks_LBNTP: torch.Tensor, matched_LBN: torch.Tensor, targets: Targets
    ) -> dict[str, torch.Tensor]:
        """The weighted losses of the masks, [L] each: means over the labeled frames of the targets of all ranks."""
        layer_J, clip_J, query_J = (matched_LBN >= 0).nonzero(as_tuple=True)
        target_J = matched_LBN[layer_J, clip_J, query_J]
        logits_JTP = masks_LBNTP[layer_J, clip_J, query_J]
        weights_JTP = targets.weights_BTP[clip_J]
        masks_JTP = targets.masks_BGTP[clip_J, target_J]
        frames = (targets.is_real_BG.sum(-1) * targets.labeled_BT.sum(-1)).sum()
        frames = sum_over_ranks(frames).clamp(min=1)
        pixels_JT = weights_JTP.sum(-1).clamp(min=1)

        def per_layer(loss_JT: torch.Tensor) -> torch.Tensor:
            labeled_JT = targets.labeled_BT[clip_J]
            return loss_JT.new_zeros(len(masks_LBNTP)).index_add(0, layer_J, (loss_JT * labeled_JT).sum(-1)) / frames

        probs_JTP = logits_JTP.sigmoid()
        bce_JTP = functional.binary_cross_entropy_with_logits(logits_JTP, masks_JTP, weights_JTP, reduction="none")
        missed_JTP = probs_JTP * (1 - masks_JTP) + (1 - probs_JTP) * masks_JTP
        alpha_JTP = FOCAL_ALPHA * masks_JTP + (1 - FOCAL_ALPHA) * (1 - masks_JTP)
        focal_JTP = alpha_JTP * missed_JTP**FOCAL_GAMMA * bce_JTP
        soft_JTP = probs_JTP * weights_JTP
        sizes_JT = soft_JTP.sum(-1) + (masks_JTP * weights_JTP).sum(-1)
        dice_JT = 1 - (2 * (soft_JTP * masks_JTP).sum(-1) + 1) / (sizes_JT + 1)
        return {
            "dice": self.settings.dice * per_layer(dice_JT),
            "focal": self.settings.focal * per_layer(focal_JTP.sum(-1) / pixels_JT),
            "bce": self.settings.bce * per_layer(bce_JTP.sum(-1) / pixels_JT),
        }
