"""LVS (Chen et al., CVPR 2021, arXiv 2104.02691): sound source localization by contrast with a tri-map.

Shapes: B clips, T frames, F = B * T, A audio features (128), D hidden dimension, C object classes, K logits of a pixel,
h w size of the map of stride 16, P pairs of a picture and its sound on this rank, Q pairs on all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.localization import Pairs, SoundLocalizer
from qdformer.models.common.pixel_method import PixelCriterion, PixelOutput
from qdformer.models.common.pixels import PixelTargets
from qdformer.utils.distributed import differentiable_gather

if TYPE_CHECKING:
    from qdformer.config.methods.lvs import LVSLoss, LVSSettings


@dataclass
class LVSOutput(PixelOutput):
    """The logits, and the features that the contrastive loss compares; both have length 1."""

    visual_BTDhw: torch.Tensor
    audio_BTD: torch.Tensor


class LVS(SoundLocalizer):
    """LVS: the similarity S of the features of the sound and of each position is the map of the source.

    A pixel belongs to the source where S is above the threshold of the tri-map's positive region: its logit is
    (S - positive) / temperature. LVS and AVSBench predict this binary map. With several classes, an addition names
    it: a linear layer on the features of the sound gives the probability q_c of each class, and the pixel has the
    logits (0, logit + log q_1, .., logit + log q_C), with which its probability of being foreground stays the same.

    Differences from the public code (https://github.com/hche11/Localizing-Visual-Sounds-the-Hard-Way): see
    `SoundLocalizer` and `Criterion`. Its evaluation takes the half of the positions with the highest similarity.
    """

    settings: LVSSettings

    def __init__(self, settings: LVSSettings, num_classes: int) -> None:
        super().__init__(settings, num_classes, settings.hidden_dim)
        self.name_sound = nn.Linear(settings.hidden_dim, num_classes) if num_classes > 1 else None

    def segment(
        self,
        maps: dict[int, torch.Tensor],
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor,
        frame_size: tuple[int, int],
    ) -> LVSOutput:
        features_BTD = self.listen(audio_BTA).float()
        audio_BTD = functional.normalize(features_BTD, dim=-1)
        visual_FDhw = functional.normalize(self.visual_features(maps).float(), dim=1)
        visual_BTDhw = visual_FDhw.unflatten(0, valid_BT.shape)
        similarity_BT1hw = torch.einsum("btdhw,btd->bthw", visual_BTDhw, audio_BTD)[:, :, None]
        logits_BTKhw = (similarity_BT1hw - self.settings.positive) / self.settings.temperature
        if self.name_sound is not None:
            class_BTC11 = self.name_sound(features_BTD).log_softmax(-1)[..., None, None]
            logits_BTKhw = torch.cat([torch.zeros_like(logits_BTKhw), logits_BTKhw + class_BTC11], 2)
        return LVSOutput(logits_BTKhw, visual_BTDhw, audio_BTD)

    def build_criterion(self, loss: LVSLoss) -> Criterion:
        return Criterion(loss, self.settings, self.num_classes)


class Criterion(PixelCriterion):
    """`contrast`: -log(exp(P_i / t) / (exp(P_i / t) + exp(N_i / t) + sum_j exp(E_ij / t))), the mean of the pairs i.

    With the soft masks m_p = sigmoid((S - positive) / temperature) and m_n = 1 - sigmoid((S - negative) / temperature),
    P_i is the mean of S_ii weighted by m_p, the hard negative N_i that weighted by m_n, and the easy negative E_ij the
    mean of the similarity of picture i and sound j, weighted by its own m_p. `mask`: the cross-entropy of the pixels.

    Frames that are known to have no sounding object are no pairs; LVS knows no labels, and its clips have a source.
    """

    def __init__(self, loss: LVSLoss, settings: LVSSettings, num_classes: int) -> None:
        super().__init__(loss, num_classes)
        self.model = settings

    def mask_loss(self, logits_YKHW: torch.Tensor, targets: PixelTargets, output: LVSOutput) -> torch.Tensor:
        return targets.cross_entropy(logits_YKHW)

    def further_losses(
        self, output: LVSOutput, targets: PixelTargets, valid_BT: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        pairs = Pairs.of(targets, valid_BT)
        visual_PDS = output.visual_BTDhw[pairs.chosen_BT].flatten(2)
        audio_QD = differentiable_gather(output.audio_BTD[pairs.chosen_BT])
        similarity_PQS = torch.einsum("pds,qd->pqs", visual_PDS, audio_QD)
        own_PS = similarity_PQS[pairs.own_PQ]
        positive_PQ = self._mean_where_above(similarity_PQS, self.model.positive)
        hard_P = -self._mean_where_above(-own_PS, -self.model.negative)
        easy_PQ = positive_PQ.masked_fill(~pairs.foreign_PQ, -torch.inf)
        logits_PX = torch.cat([positive_PQ[pairs.own_PQ][:, None], hard_P[:, None], easy_PQ], 1)
        loss_P = -(logits_PX / self.model.contrast_temperature).log_softmax(1)[:, 0]
        return {"contrast": self.settings.contrast * loss_P.sum() / pairs.count}

    def _mean_where_above(self, similarity_S: torch.Tensor, threshold: float) -> torch.Tensor:
        """The mean over the last dimension, weighted by how far the values are above the threshold."""
        weights_S = ((similarity_S - threshold) / self.model.temperature).sigmoid()
        return (weights_S * similarity_S).sum(-1) / weights_S.sum(-1).clamp(min=1e-30)
