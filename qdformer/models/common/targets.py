"""Training targets from label maps: one target per clip and class that sounds in it.

Shapes: B clips, T frames, H W pixels of the labels, P pixels at the masks' stride, G targets of a clip (padded to
the largest number in the batch).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from qdformer.models.common.boxes import masks_to_boxes
from qdformer.utils.constants import IGNORE_INDEX
from qdformer.utils.errors import InputError


@dataclass
class Targets:
    """The targets of the clips of a batch, padded to the same number per clip."""

    classes_BG: torch.Tensor
    """Class index 0..C-1 of each target (label minus 1); 0 for padding."""
    is_real_BG: torch.Tensor
    """False for padding."""
    masks_BGTP: torch.Tensor
    """Share of each mask pixel that the object covers; 0 in frames where it does not sound."""
    weights_BTP: torch.Tensor
    """Share of each mask pixel that has a label; 0 in frames without ground truth."""
    present_BGT: torch.Tensor
    """Whether the target sounds and is visible, in a frame with ground truth."""
    boxes_BGT4: torch.Tensor
    """Box of the target in each frame; zeros where the target is not present."""
    labeled_BT: torch.Tensor
    """Whether the frame has ground truth."""


def build_targets(
    labels_BTHW: torch.Tensor, labeled_BT: torch.Tensor, num_classes: int, mask_stride: int = 4
) -> Targets:
    """Targets with masks at `mask_stride`; raises `InputError` for a class id that the model does not have.

    All objects of one class form one target, because the labels do not distinguish them.
    """
    judged_BTHW = (labels_BTHW != IGNORE_INDEX) & labeled_BT[..., None, None]
    labels_BTHW = labels_BTHW.where(judged_BTHW, 0)
    B = len(labels_BTHW)
    require_known_classes(labels_BTHW, num_classes)
    present_BC = torch.stack([torch.bincount(clip.flatten(), minlength=num_classes + 1).bool() for clip in labels_BTHW])
    ids = [clip[1:].nonzero().flatten().tolist() for clip in present_BC.cpu()]
    most = max(map(len, ids), default=0)
    device = labels_BTHW.device
    classes_BG = torch.tensor([clip + [0] * (most - len(clip)) for clip in ids], device=device).view(B, most).long()
    is_real_BG = (
        torch.tensor([[i < len(clip) for i in range(most)] for clip in ids], device=device).view(B, most).bool()
    )

    masks_BGTHW = (labels_BTHW[:, None] == classes_BG[..., None, None, None] + 1) & is_real_BG[..., None, None, None]
    present_BGT = masks_BGTHW.flatten(-2).any(-1)
    return Targets(
        classes_BG=classes_BG,
        is_real_BG=is_real_BG,
        masks_BGTP=_shrink(masks_BGTHW, mask_stride),
        weights_BTP=_shrink(judged_BTHW, mask_stride),
        present_BGT=present_BGT,
        boxes_BGT4=masks_to_boxes(masks_BGTHW),
        labeled_BT=labeled_BT,
    )


def require_known_classes(labels: torch.Tensor, num_classes: int) -> None:
    """Raise `InputError` for a class id above `num_classes`, in labels without ignored pixels."""
    if labels.numel() and (highest := int(labels.max())) > num_classes:
        raise InputError(f"class id {highest} in the labels; expected 0..{num_classes} or {IGNORE_INDEX}")


def _shrink(masks_HW: torch.Tensor, stride: int) -> torch.Tensor:
    """Masks [..., H, W] -> [..., P]: the mean of each block of `stride` x `stride` pixels."""
    *rest, H, W = masks_HW.shape
    if not all(rest):
        return torch.zeros(*rest, -(-H // stride) * -(-W // stride), device=masks_HW.device)
    blocks = functional.avg_pool2d(masks_HW.float().reshape(-1, 1, H, W), stride, ceil_mode=True)
    return blocks.view(*rest, -1)
