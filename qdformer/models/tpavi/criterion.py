"""TPAVI's objective: L = BCE(M, Y) + lambda L_AVM with L_AVM = sum_i KL(avg(M_i * Z_i), A_i) over the stages i.

Shapes: B clips, T frames, F = B * T, K logits per pixel, D hidden dimension, H W pixels, h w size of a map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.targets import require_known_classes
from qdformer.utils.constants import IGNORE_INDEX
from qdformer.utils.distributed import sum_over_ranks

if TYPE_CHECKING:
    from qdformer.config.methods.tpavi import TPAVILoss
    from qdformer.models.tpavi.output import TPAVIOutput


class Criterion(nn.Module):
    """The cross-entropy of the pixels and the audio-visual matching loss.

    `mask`: the mean over the labeled pixels, binary for one class, else over the classes and the background. `avm`: the
    mean over the labeled frames of KL(softmax(a) || softmax(v)), where v is the mean of M_i * Z_i over all positions
    and a the aligned audio features; M_i is the predicted mask at the size of Z_i.

    As in the public code, the loss is averaged over the stages, M_i is the sigmoid of the averaged logits if there is
    one class, and with several classes M_i is the share of the pixels whose best class is not the background, which has
    no gradient. For S4 and MS3, the public code takes the sum over the frames in place of the mean (`TPAVILoss`); the
    public code for S4 has a threshold in M_i, which its recipe (lambda = 0) does not use. With several ranks, each of
    them returns its share of the losses of the global batch.
    """

    def __init__(self, settings: TPAVILoss, num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.num_classes = num_classes

    def forward(
        self, output: TPAVIOutput, labels_BTHW: torch.Tensor, valid_BT: torch.Tensor, labeled_BT: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The weighted losses by name, and their sum as `total`.

        Labels are class ids 0..C or 255 (ignored); raises `InputError` for others.
        """
        judged_F = (valid_BT & labeled_BT).flatten()
        with torch.autocast(labels_BTHW.device.type, enabled=False):
            logits_FKHW = output.logits_BTKHW.flatten(0, 1).float()
            losses = {"mask": self.settings.mask * self._mask(logits_FKHW, labels_BTHW.flatten(0, 1), judged_F)}
            if self.settings.avm:
                losses["avm"] = self.settings.avm * matching_loss(output, logits_FKHW, judged_F)
            return losses | {"total": sum(losses.values(), start=logits_FKHW.new_zeros(()))}

    def _mask(self, logits_FKHW: torch.Tensor, labels_FHW: torch.Tensor, judged_F: torch.Tensor) -> torch.Tensor:
        labels_FHW = labels_FHW.where(judged_F[:, None, None], IGNORE_INDEX).long()
        judged_FHW = labels_FHW != IGNORE_INDEX
        require_known_classes(labels_FHW[judged_FHW], self.num_classes)
        pixels = sum_over_ranks(judged_FHW.sum()).clamp(min=1)
        if self.num_classes == 1:
            target_FHW = labels_FHW.where(judged_FHW, 0).float()
            entropy_FHW = functional.binary_cross_entropy_with_logits(logits_FKHW[:, 0], target_FHW, reduction="none")
            return (entropy_FHW * judged_FHW).sum() / pixels
        return functional.cross_entropy(logits_FKHW, labels_FHW, ignore_index=IGNORE_INDEX, reduction="sum") / pixels


def matching_loss(
    output: TPAVIOutput, logits_FKHW: torch.Tensor, judged_F: torch.Tensor, normalize: bool = False
) -> torch.Tensor:
    """The mean over the stages and the judged frames of KL(softmax(a) || softmax(v)); see `Criterion`.

    `normalize`: a and v are divided by their norms before.
    """
    frames = sum_over_ranks(judged_F.sum()).clamp(min=1)
    several = logits_FKHW.shape[1] > 1
    mask_F1HW = (logits_FKHW.argmax(1, keepdim=True) > 0).float() if several else logits_FKHW
    total = logits_FKHW.new_zeros(())
    for map_FDhw, audio_BTD in zip(output.stage_maps_FDhw, output.stage_audio_BTD, strict=True):
        pooled_F1hw = functional.adaptive_avg_pool2d(mask_F1HW, (map_FDhw.shape[-2], map_FDhw.shape[-1]))
        visual_FD = (map_FDhw.float() * (pooled_F1hw if several else pooled_F1hw.sigmoid())).mean((-2, -1))
        audio_FD = audio_BTD.flatten(0, 1).float()
        if normalize:
            visual_FD, audio_FD = functional.normalize(visual_FD, dim=-1), functional.normalize(audio_FD, dim=-1)
        divergence_FD = functional.kl_div(
            visual_FD.log_softmax(-1), audio_FD.log_softmax(-1), reduction="none", log_target=True
        )
        total = total + (divergence_FD.sum(-1) * judged_F).sum() / frames
    return total / len(output.stage_maps_FDhw)
