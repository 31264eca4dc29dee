"""Measures a model on the split `val` while it is trained, and chooses the epoch whose model is kept.

The random state and the hooks of the training are left alone: with and without it, a training gives the same weights.

Shapes: B clips, T frames, K classes (background first), H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from qdformer.utils.constants import IGNORE_INDEX
from qdformer.utils.distributed import sum_over_ranks

if TYPE_CHECKING:
    from qdformer.data.dataset import Batch
    from qdformer.models import Method

SCORE = "val_miou_dataset"
"""The metric by which `train.select: best` chooses."""


@torch.no_grad()
def validate(model: Method, criterion: nn.Module, batches: Iterable[Batch], device: torch.device) -> dict[str, float]:
    """The dataset-level mIoU of the predictions (`qdformer.metrics.semantic`), and the mean total loss of the batches.

    With several ranks, each of them passes its part of every global batch. The model is left in training mode.
    """
    classes = model.num_classes + 1
    confusion_KK = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    loss, steps = torch.zeros((), dtype=torch.float64, device=device), 0
    model.eval()
    for batch in (batch.to(device) for batch in batches):
        prediction = model.predict(batch.images_BTCHW, batch.audio_BTA, batch.valid_BT, batch.maps)
        losses = criterion(prediction.output, batch.labels_BTHW, batch.valid_BT, batch.labeled_BT)
        loss += losses["total"]
        steps += 1
        shown_BT = batch.valid_BT & batch.labeled_BT
        counted_BTHW = shown_BT[..., None, None] & (batch.labels_BTHW != IGNORE_INDEX)
        pairs = batch.labels_BTHW[counted_BTHW] * classes + prediction.semantic_BTHW[counted_BTHW]
        confusion_KK += torch.bincount(pairs, minlength=classes * classes)
    model.train()
    confusion_KK = sum_over_ranks(confusion_KK).view(classes, classes)
    intersection_K = confusion_KK.diagonal()
    union_K = confusion_KK.sum(0) + confusion_KK.sum(1) - intersection_K
    iou_K = (intersection_K / union_K)[union_K > 0]
    return {SCORE: float(iou_K.double().mean()), "val_total": float(sum_over_ranks(loss)) / steps}


def is_selected(history: Sequence[Mapping[str, float]], select: Literal["last", "best"]) -> bool:
    """Whether the model after the last epoch of `history` is the one to keep so far.

    `best` is the earliest epoch with the highest `SCORE`; before the first score, it is the last epoch.
    """
    scores = {row["epoch"]: row[SCORE] for row in history if SCORE in row}
    return select == "last" or not scores or max(scores, key=lambda epoch: scores[epoch]) == history[-1]["epoch"]
