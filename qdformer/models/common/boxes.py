"""Boxes as (center x, center y, width, height), relative to the frame."""

from __future__ import annotations

import torch


def masks_to_boxes(masks_HW: torch.Tensor) -> torch.Tensor:
    """Tight boxes [..., 4] around the true pixels of masks [..., H, W]; zeros for empty masks."""
    sides = []
    for axis in (-2, -1):  # columns, then rows
        hit = masks_HW.any(axis)
        size = hit.shape[-1]
        first = hit.float().argmax(-1)
        end = size - hit.flip(-1).float().argmax(-1)
        sides.append((first / size, end / size))
    (left, right), (top, bottom) = sides
    boxes = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], dim=-1)
    return boxes * masks_HW.any(-1).any(-1)[..., None]


def generalized_iou(a_4: torch.Tensor, b_4: torch.Tensor) -> torch.Tensor:
    """Generalized IoU, -1..1, of boxes [..., 4] that broadcast together (Rezatofighi et al., 2019)."""
    a_low, a_high = a_4[..., :2] - a_4[..., 2:] / 2, a_4[..., :2] + a_4[..., 2:] / 2
    b_low, b_high = b_4[..., :2] - b_4[..., 2:] / 2, b_4[..., :2] + b_4[..., 2:] / 2
    shared = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0).prod(-1)
    union = a_4[..., 2:].prod(-1) + b_4[..., 2:].prod(-1) - shared
    hull = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).prod(-1)
    tiny = 1e-7
    return shared / (union + tiny) - (hull - union) / (hull + tiny)
