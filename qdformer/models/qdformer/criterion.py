"""The training objective, Eq. 8: L = lambda_quant L_quant + L_segm.

Eq. 9: L_quant = sum_i { ||VQ(g_i) - sg[g_i]||_2^2 + lambda_com ||sg[VQ(g_i)] - g_i||_2^2
                         + lambda_com sum_t ||sg[VQ(l_i,t)] - l_i,t||_2^2 }.
Eq. 10: L_match(y_i, y^_j) = lambda_box L_box + lambda_cls L_cls + lambda_mask L_mask; L_segm is L_match of the best
assignment.
L_box is L1 and GIoU, L_cls the focal loss, L_mask Dice and BCE.

Shapes: L decoder layers, B clips, T frames, N queries, G targets of a clip (padded), C object classes, P mask pixels,
J matched pairs of a query and a target, over all layers and clips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.boxes import generalized_iou
from qdformer.models.common.matcher import match
from qdformer.models.common.targets import Targets, build_targets
from qdformer.utils.distributed import sum_over_ranks

if TYPE_CHECKING:
    from qdformer.config.methods.qdformer import Loss
    from qdformer.models.qdformer.output import QDFormerOutput

FOCAL_GAMMA = 2.0
"""Exponent of the focal loss (Lin et al., 2017)."""


@dataclass
class _Counts:
    """What the losses are divided by: sums over the global batch, that is, over the batches of all ranks."""

    clips: torch.Tensor
    valid_frames: torch.Tensor
    targets: torch.Tensor
    target_frames: torch.Tensor
    """Frames in which a target is present, summed over the targets."""

    @classmethod
    def of(cls, targets: Targets, valid_BT: torch.Tensor) -> _Counts:
        own = (valid_BT.any(-1), valid_BT, targets.is_real_BG, targets.present_BGT)
        return cls(*sum_over_ranks(torch.stack([x.sum() for x in own])))


class Criterion(nn.Module):
    """Matches queries to targets over the whole clip and computes the losses of class, box and mask.

    A target is one class in one clip. In frames where the class is not both visible and sounding, the matched query
    must predict "no object" and an empty mask; queries without a target must predict "no object" in all frames. Their
    focal loss has the weight `no_object`. BCE and Dice are computed over the labeled pixels of the clip, and the box
    losses over the frames in which the target is present. Each decoder layer is matched separately.

    With several ranks, each of them returns its share of the losses of the global batch: the sum over the ranks is what
    one process gives for the whole batch.
    """

    def __init__(self, settings: Loss, num_classes: int, mask_stride: int = 4) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes
        self.mask_stride = mask_stride

    def forward(
        self,
        output: QDFormerOutput,
        labels_BTHW: torch.Tensor,
        valid_BT: torch.Tensor,
        labeled_BT: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The weighted losses by name, and their sum as `total`.

        `cls`, `l1`, `giou`, `mask` and `dice` are the losses of the last decoder layer, `auxiliary` is the sum of the
        losses of the earlier layers. Labels are class ids 0..C or 255 (ignored); raises `InputError` for others.
        """
        layers = [*output.auxiliary, output] if self.settings.auxiliary else [output]
        with torch.autocast(labels_BTHW.device.type, enabled=False):
            class_logits = torch.stack([layer.class_logits_BTNC for layer in layers])
            boxes = torch.stack([layer.boxes_BTN4 for layer in layers])
            masks = torch.stack([layer.mask_logits_BTNHW for layer in layers])
            targets = build_targets(labels_BTHW, valid_BT & labeled_BT, self.num_classes, self.mask_stride)
            # A query's masks over the clip: [L, B, N, T, P].
            masks = masks.flatten(-2).transpose(2, 3)
            counts = _Counts.of(targets, valid_BT)
            token_cost_BNG = self._token_cost(output, targets)
            losses, matched_LBN = self._segmentation_losses(class_logits, boxes, masks, targets, counts, token_cost_BNG)
            losses |= self._token_losses(output, matched_LBN[-1:], targets)
            losses |= self._quantization_losses(output, valid_BT, counts)
            return losses | {"total": sum(losses.values(), start=masks.new_zeros(()))}

    def _quantization_losses(
        self, output: QDFormerOutput, valid_BT: torch.Tensor, counts: _Counts
    ) -> dict[str, torch.Tensor]:
        """The weighted terms of Eq. 9, as means over the clips: `codebook` is the first, `commitment` the other two.

        Padding frames have no commitment loss.
        """
        settings, stats = self.settings, output.quantization
        if stats is None or output.tokens_BND is None:
            return {}
        counted_B = valid_BT.any(-1)
        codebook = (stats.codebook_errors_BN.sum(-1) * counted_B).sum() / counts.clips
        commitment = (stats.commitment_errors_BN.sum(-1) * counted_B).sum() / counts.clips
        local = torch.zeros_like(commitment)
        if stats.local_commitment_errors_BTN is not None:
            local = (stats.local_commitment_errors_BTN.sum(-1) * valid_BT).sum(-1).sum() / counts.clips
        if settings.quantize_reduction == "mean":
            N, D = output.tokens_BND.shape[1:]
            codebook, commitment = codebook / (N * D), commitment / (N * D)
            local = local / (counts.valid_frames / counts.clips * N * D)
        return {
            "codebook": settings.quantize * codebook,
            "commitment": settings.quantize * settings.commitment * (commitment + local),
        }

    @torch.no_grad()
    def _token_cost(self, output: QDFormerOutput, targets: Targets) -> torch.Tensor | float:
        """The class cost of the tokens, [B, N, G], which every decoder layer's matching adds to its own."""
        cost: torch.Tensor | float = 0.0
        index_B1G = targets.classes_BG[:, None]
        if output.token_class_logits_BNC is not None:
            probs_BNC = output.token_class_logits_BNC.softmax(-1)
            cost = cost - probs_BNC.gather(-1, index_B1G.expand(*probs_BNC.shape[:2], -1))
        if output.local_token_class_logits_BTNC is not None:
            probs_BTNC = output.local_token_class_logits_BTNC.softmax(-1)
            probs_BTNG = probs_BTNC.gather(-1, index_B1G[:, None].expand(*probs_BTNC.shape[:3], -1))
            present_BGT = targets.present_BGT.float()
            frames_BG = present_BGT.sum(-1).clamp(min=1)
            cost = cost - torch.einsum("btng,bgt->bng", probs_BTNG, present_BGT) / frames_BG[:, None]
        return self.settings.token_match * cost

    def _token_losses(
        self, output: QDFormerOutput, matched_1BN: torch.Tensor, targets: Targets
    ) -> dict[str, torch.Tensor]:
        """The weighted class losses of the quantized tokens of the clip and of its frames.

        A token has the target of its query in the last decoder layer: in a frame, the class if it is present there; in
        the clip, the class if it is present in any frame.
        """
        losses: dict[str, torch.Tensor] = {}
        if not self.settings.token_cls:
            return losses
        if output.token_class_logits_BNC is not None:
            clip = replace(
                targets,
                present_BGT=targets.present_BGT.any(-1, keepdim=True),
                labeled_BT=targets.labeled_BT.any(-1, keepdim=True),
            )
            loss_1 = self._class_loss(output.token_class_logits_BNC[None, :, None], matched_1BN, clip)
            losses["token_cls"] = self.settings.token_cls * loss_1[0]
        if output.local_token_class_logits_BTNC is not None:
            loss_1 = self._class_loss(output.local_token_class_logits_BTNC[None], matched_1BN, targets)
            losses["local_token_cls"] = self.settings.token_cls * loss_1[0]
        return losses

    def _segmentation_losses(
        self,
        class_logits_LBTNC: torch.Tensor,
        boxes_LBTN4: torch.Tensor,
        masks_LBNTP: torch.Tensor,
        targets: Targets,
        counts: _Counts,
        token_cost_BNG: torch.Tensor | float,
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """The weighted losses of Eq. 10 for the best assignment, and the assignment [L, B, N]."""
        settings = self.settings
        L, B, N = masks_LBNTP.shape[:3]
        with torch.no_grad():
            cost_LBNG = self._costs(class_logits_LBTNC.float(), boxes_LBTN4.float(), masks_LBNTP.float(), targets)
            cost_LBNG = cost_LBNG + token_cost_BNG
        matched = match(cost_LBNG.flatten(0, 1), targets.is_real_BG.sum(1).tolist() * L).view(L, B, N)
        layer_J, clip_J, query_J = (matched >= 0).nonzero(as_tuple=True)
        target_J = matched[layer_J, clip_J, query_J]
        device = masks_LBNTP.device
        layer_J, clip_J, query_J, target_J, matched = (
            x.to(device) for x in (layer_J, clip_J, query_J, target_J, matched)
        )
        pairs, frames = counts.targets.clamp(min=1), counts.target_frames.clamp(min=1)

        def per_layer(loss_J: torch.Tensor) -> torch.Tensor:
            return loss_J.new_zeros(L).index_add(0, layer_J, loss_J)

        present_JT = targets.present_BGT[clip_J, target_J].float()
        boxes_JT4 = boxes_LBTN4[layer_J, clip_J, :, query_J]
        wanted_JT4 = targets.boxes_BGT4[clip_J, target_J]
        l1_J = ((boxes_JT4 - wanted_JT4).abs().sum(-1) * present_JT).sum(-1)
        giou_J = ((1 - generalized_iou(boxes_JT4, wanted_JT4)) * present_JT).sum(-1)

        logits_JX = masks_LBNTP[layer_J, clip_J, query_J].flatten(1)
        masks_JX = targets.masks_BGTP[clip_J, target_J].flatten(1).to(logits_JX)
        weights_JX = targets.weights_BTP[clip_J].flatten(1).to(logits_JX)
        bce_JX = functional.binary_cross_entropy_with_logits(logits_JX, masks_JX, weights_JX, reduction="none")
        mask_J = bce_JX.sum(-1) / weights_JX.sum(-1).clamp(min=1)
        soft_JX = logits_JX.sigmoid() * weights_JX
        dice_J = 1 - (2 * (soft_JX * masks_JX).sum(-1) + 1) / (soft_JX.sum(-1) + masks_JX.sum(-1) + 1)

        by_layer = {
            "cls": settings.cls * self._class_loss(class_logits_LBTNC, matched, targets),
            "l1": settings.l1 * per_layer(l1_J) / frames,
            "giou": settings.giou * per_layer(giou_J) / frames,
            "mask": settings.mask * per_layer(mask_J) / pairs,
            "dice": settings.dice * per_layer(dice_J) / pairs,
        }
        losses = {name: loss_L[-1] for name, loss_L in by_layer.items()}
        if L > 1:
            zero = masks_LBNTP.new_zeros(())
            losses["auxiliary"] = sum((loss_L[:-1].sum() for loss_L in by_layer.values()), start=zero)
        return losses, matched

    def _costs(
        self,
        class_logits_LBTNC: torch.Tensor,
        boxes_LBTN4: torch.Tensor,
        masks_LBNTP: torch.Tensor,
        targets: Targets,
    ) -> torch.Tensor:
        """Cost [L, B, N, G] of matching query n with target g (Eq. 10), with the weights of the losses."""
        settings = self.settings
        present_BGT = targets.present_BGT.float()
        frames_BG = present_BGT.sum(-1).clamp(min=1)

        L, B, T, N, _ = class_logits_LBTNC.shape
        index = targets.classes_BG[None, :, None, None].expand(L, B, T, N, -1)
        class_LBTNG = -class_logits_LBTNC.softmax(-1).gather(-1, index)
        boxes, wanted = boxes_LBTN4[..., None, :], targets.boxes_BGT4.transpose(1, 2)[:, :, None]
        l1_LBTNG = (boxes - wanted).abs().sum(-1)
        giou_LBTNG = 1 - generalized_iou(boxes, wanted)
        framewise = settings.cls * class_LBTNG + settings.l1 * l1_LBTNG + settings.giou * giou_LBTNG
        framewise_LBNG = torch.einsum("lbtng,bgt->lbng", framewise, present_BGT) / frames_BG[:, None]

        logits, weights_BX = masks_LBNTP.flatten(-2), targets.weights_BTP.flatten(1)
        masks_BXG = (targets.masks_BGTP.flatten(2) * weights_BX[:, None]).transpose(1, 2)
        judged_B11 = weights_BX.sum(-1)[:, None, None]
        # BCE(x, m) = softplus(x) - x m. The first term depends on the query but not on the target.
        softplus_LBN1 = (functional.softplus(logits) * weights_BX[:, None]).sum(-1, keepdim=True)
        bce_LBNG = (softplus_LBN1 - logits @ masks_BXG) / judged_B11.clamp(min=1)
        soft = logits.sigmoid() * weights_BX[:, None]
        sizes = soft.sum(-1, keepdim=True) + masks_BXG.sum(-2, keepdim=True)
        dice_LBNG = 1 - (2 * soft @ masks_BXG + 1) / (sizes + 1)
        return framewise_LBNG + settings.mask * bce_LBNG + settings.dice * dice_LBNG

    def _class_loss(
        self, class_logits_LBTNC: torch.Tensor, matched_LBN: torch.Tensor, targets: Targets
    ) -> torch.Tensor:
        """Softmax focal loss [L]: the weighted mean over the queries of all frames with ground truth of all ranks."""
        has_target_LBN = matched_LBN >= 0
        clips_B1 = torch.arange(len(targets.labeled_BT), device=matched_LBN.device)[:, None]
        if targets.classes_BG.shape[1]:
            index_LBN = matched_LBN.clamp(min=0)
            class_LBN1 = targets.classes_BG[clips_B1, index_LBN][..., None]
            present_LBNT = targets.present_BGT[clips_B1, index_LBN] & has_target_LBN[..., None]
            wanted_LBTN = torch.where(present_LBNT, class_LBN1, self.num_classes).transpose(2, 3)
        else:
            wanted_LBTN = torch.full(class_logits_LBTNC.shape[:-1], self.num_classes, device=matched_LBN.device)
        log_p_LBTN = class_logits_LBTNC.log_softmax(-1).gather(-1, wanted_LBTN[..., None]).squeeze(-1)
        focal_LBTN = -((1 - log_p_LBTN.exp()) ** FOCAL_GAMMA) * log_p_LBTN
        weights_LBTN = torch.where(has_target_LBN[:, :, None], 1.0, self.settings.no_object)
        weights_LBTN = weights_LBTN * targets.labeled_BT[None, :, :, None]
        weight_L = sum_over_ranks(weights_LBTN.sum((1, 2, 3))).clamp(min=1e-6)
        return (focal_LBTN * weights_LBTN).sum((1, 2, 3)) / weight_L
