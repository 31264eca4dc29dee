"""Targets, losses and predictions of methods that classify pixels, instead of predicting one mask per query.

Such a method has K logits for each pixel: with one object class, K = 1 logit of the sounding objects; otherwise
K = C + 1 logits, of which index 0 is the background.

Shapes: B clips, T frames, C object classes, H W pixels, Y labeled frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from qdformer.models.common.method import Prediction
from qdformer.models.common.targets import require_known_classes
from qdformer.models.common.transformer import upsample
from qdformer.utils.constants import IGNORE_INDEX
from qdformer.utils.distributed import sum_over_ranks

FOREGROUND_THRESHOLD = 0.5
"""With one class, a pixel is foreground if its probability exceeds this."""
BORDER = 31
"""Side in pixels of the square around a pixel in which F3Net's loss compares it with its neighbors."""


def number_of_logits(num_classes: int) -> int:
    """K, the number of logits of each pixel."""
    return 1 if num_classes == 1 else num_classes + 1


@dataclass
class PixelTargets:
    """The frames with ground truth of a batch."""

    labels_YHW: torch.Tensor
    """Class ids 0..C; 0 where there is no label."""
    judged_YHW: torch.Tensor
    """1 where there is a label, else 0."""
    counted_BT: torch.Tensor
    """The Y frames among those of the batch."""
    frames: torch.Tensor
    """Y of the global batch, that is, summed over all ranks; at least 1."""

    @classmethod
    def of(
        cls, labels_BTHW: torch.Tensor, valid_BT: torch.Tensor, labeled_BT: torch.Tensor, num_classes: int
    ) -> PixelTargets:
        """Raises `InputError` for a class id that the model does not have."""
        counted_BT = valid_BT & labeled_BT
        labels_YHW = labels_BTHW[counted_BT]
        judged_YHW = labels_YHW != IGNORE_INDEX
        labels_YHW = labels_YHW.where(judged_YHW, 0)
        require_known_classes(labels_YHW, num_classes)
        return cls(labels_YHW, judged_YHW.float(), counted_BT, sum_over_ranks(counted_BT.sum()).clamp(min=1))

    @property
    def masks_YHW(self) -> torch.Tensor:
        """1 on the sounding objects of any class, else 0."""
        return (self.labels_YHW > 0).float()

    def mean(self, loss_Y: torch.Tensor) -> torch.Tensor:
        """This rank's share of the mean over the frames of all ranks."""
        return loss_Y.sum() / self.frames

    def at_labels(self, maps_BTKHW: torch.Tensor) -> torch.Tensor:
        """The labeled frames of maps [B, T, K, h, w], at the size of the labels: [Y, K, H, W]."""
        return upsample(maps_BTKHW[self.counted_BT], self.labels_YHW.shape[-2:])

    def cross_entropy(self, logits_YKHW: torch.Tensor) -> torch.Tensor:
        """Mean over the labeled pixels of each frame, [Y]: binary cross-entropy if K = 1."""
        if logits_YKHW.shape[1] == 1:
            loss_YHW = functional.binary_cross_entropy_with_logits(
                logits_YKHW[:, 0], self.masks_YHW, self.judged_YHW, reduction="none"
            )
        else:
            loss_YHW = functional.cross_entropy(logits_YKHW, self.labels_YHW, reduction="none") * self.judged_YHW
        return loss_YHW.sum((1, 2)) / self.judged_YHW.sum((1, 2)).clamp(min=1)

    def squared_dice(self, logits_YHW: torch.Tensor, epsilon: float) -> torch.Tensor:
        """1 - 2 sum(p m) / (sum(p^2) + sum(m^2) + 2 epsilon) of each frame's mask m, [Y] (V-Net, Milletari et al.,
        2016).

        It is 0 where the mask is empty: the formula would be 1 for every prediction, without a gradient.
        """
        probs_YHW = logits_YHW.sigmoid() * self.judged_YHW
        masks_YHW = self.masks_YHW
        sizes_Y = probs_YHW.square().sum((1, 2)) + masks_YHW.sum((1, 2)) + 2 * epsilon
        dice_Y = 2 * (probs_YHW * masks_YHW).sum((1, 2)) / sizes_Y
        return (1 - dice_Y) * masks_YHW.any(2).any(1)

    def structure(self, logits_YKHW: torch.Tensor) -> torch.Tensor:
        """Cross-entropy and weighted IoU loss of each frame, [Y] (F3Net, Wei et al., 2020).

        The IoU loss is that of the union of the classes, 1 - (sum(w p m) + 1) / (sum(w (p + m - p m)) + 1), with the
        weights w = 1 + 5 |mean of m around the pixel - m|, which are higher at the borders of the mask m. F3Net's code
        also has these weights in its cross-entropy, where they cancel out. The IoU loss is 0 where the mask is empty:
        the formula would be almost 1 for every prediction, with hardly a gradient.
        """
        masks_YHW, probs_YHW = self.masks_YHW, foreground_probs(logits_YKHW)
        around_YHW = functional.avg_pool2d(masks_YHW[:, None], BORDER, stride=1, padding=BORDER // 2)[:, 0]
        weights_YHW = (1 + 5 * (around_YHW - masks_YHW).abs()) * self.judged_YHW
        joint_Y = (weights_YHW * probs_YHW * masks_YHW).sum((1, 2))
        union_Y = (weights_YHW * (probs_YHW + masks_YHW)).sum((1, 2)) - joint_Y
        iou_loss_Y = (1 - (joint_Y + 1) / (union_Y + 1)) * masks_YHW.any(2).any(1)
        return self.cross_entropy(logits_YKHW) + iou_loss_Y


def foreground_probs(logits_FKHW: torch.Tensor) -> torch.Tensor:
    """The probability of each pixel [F, H, W] of not being background."""
    return logits_FKHW[:, 0].sigmoid() if logits_FKHW.shape[1] == 1 else 1 - logits_FKHW.softmax(1)[:, 0]


def predict_pixels(logits_BTKHW: torch.Tensor, frame_size: tuple[int, int], stride: int, output: Any) -> Prediction:
    """The prediction from logits at `stride`, at the size of the frames.

    With one class, a pixel is foreground if its probability exceeds `FOREGROUND_THRESHOLD`. With several, it takes the
    class with the highest logit, and its probability of being foreground is that of all classes but the background.
    The probability of a class in a frame is the highest of its pixels.
    """
    B, T, _, H, W = logits_BTKHW.shape
    height, width = frame_size
    logits_FKHW = upsample(logits_BTKHW.flatten(0, 1), (H * stride, W * stride))[..., :height, :width]
    if logits_FKHW.shape[1] == 1:
        foreground_FHW = logits_FKHW[:, 0].sigmoid()
        semantic_FHW = (foreground_FHW > FOREGROUND_THRESHOLD).long()
        class_probs_FC = foreground_FHW.flatten(1).amax(1, keepdim=True)
    else:
        probs_FKHW = logits_FKHW.softmax(1)
        foreground_FHW = 1 - probs_FKHW[:, 0]
        semantic_FHW = probs_FKHW.argmax(1)
        class_probs_FC = probs_FKHW[:, 1:].flatten(2).amax(2)
    return Prediction(
        semantic_FHW.unflatten(0, (B, T)),
        foreground_FHW.unflatten(0, (B, T)),
        class_probs_FC.unflatten(0, (B, T)),
        output,
    )
