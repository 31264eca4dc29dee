"""MSSL (Qian et al., ECCV 2020, arXiv 2007.06355): localization of several sound sources from coarse to fine.

Shapes: B clips, T frames, F = B * T, A audio features (128), D hidden dimension, E dimension of the alignment, C object
classes, K logits of a pixel, h w size of the map of stride 16, S its positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from qdformer.models.common.localization import SoundLocalizer
from qdformer.models.common.transformer import flatten_map
from qdformer.models.mssl.criterion import Criterion
from qdformer.models.mssl.output import MSSLOutput

if TYPE_CHECKING:
    from qdformer.config.methods.mssl import MSSLLoss, MSSLSettings


class MSSL(SoundLocalizer):
    """MSSL: the parts of picture and sound that belong to a class are aligned, and compared position by position.

    - Stage one: picture and sound are classified from their mean features, and it is learned whether a picture and a
      sound belong together (`Criterion`).
    - Stage two: the activation map of each class (Zhou et al., 2016), relu(w_c V), weighs the positions of a picture;
      the means of their features and those of the sound are projected to E dimensions and aligned.
    - Map: s_c is the similarity of the features of class c in the sound and those of each position. A pixel has the
      logit (s_c - threshold) / temperature + log p_c, where p_c is the probability that class c sounds.

    Differences from the public code (https://github.com/shvdiwnkozbw/Multi-Source-Sound-Localization, folder `new`):
    see `SoundLocalizer`, and

    - A frame has one feature vector of its sound, without positions. The activation of a class weighs its channels
      instead: relu(w_c * a).
    - Classes are those of the labels in place of 7 pseudo-classes; with one class, they are whether anything sounds.
    - Its map is the mean of s_c over the classes with p_c above 0.3, weighted by p_c and divided by its maximum. A map
      divided by its maximum has a source in every frame; and it has no classes.
    - Both stages are one training, of which `stage_one` is the share of the first. The public code has SGD with a
      lower learning rate in the second.
    """

    settings: MSSLSettings
    stage_two: torch.Tensor

    def __init__(self, settings: MSSLSettings, num_classes: int) -> None:
        hidden_dim, align_dim = settings.hidden_dim, settings.align_dim
        super().__init__(settings, num_classes, hidden_dim)
        self.classify_audio = nn.Linear(hidden_dim, num_classes)
        self.classify_visual = nn.Linear(hidden_dim, num_classes)
        self.correspond = nn.Sequential(nn.Linear(2 * hidden_dim, 128), nn.ReLU(), nn.Linear(128, 1))
        self.project_audio, self.project_visual = (
            nn.Sequential(
                nn.Linear(hidden_dim, 2 * hidden_dim, bias=False),
                nn.ReLU(),
                nn.Linear(2 * hidden_dim, align_dim, bias=False),
            )
            for _ in range(2)
        )
        self.register_buffer("stage_two", torch.tensor(settings.stage_one == 0))

    def segment(
        self,
        maps: dict[int, torch.Tensor],
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor,
        frame_size: tuple[int, int],
    ) -> MSSLOutput:
        audio_BTD = functional.relu(self.listen(audio_BTA))
        map_FDhw = functional.relu(self.visual_features(maps))
        visual_BTSD = flatten_map(map_FDhw).unflatten(0, valid_BT.shape)
        visual_BTD = visual_BTSD.mean(2)
        audio_class_BTC = self.classify_audio(audio_BTD)

        # The activations only weigh the features; the second stage does not train the classifiers by them.
        channels_BTCD = functional.relu(audio_BTD[:, :, None] * self.classify_audio.weight).detach()
        audio_BTCE = functional.normalize(self.project_audio(audio_BTD[:, :, None] * channels_BTCD), dim=-1)
        weights_BTCS = functional.relu(visual_BTSD @ self.classify_visual.weight.T).transpose(2, 3).detach()
        weights_BTCS = weights_BTCS / weights_BTCS.sum(-1, keepdim=True).clamp(min=1e-10)
        visual_BTCE = functional.normalize(self.project_visual(weights_BTCS @ visual_BTSD), dim=-1)
        positions_BTSE = functional.normalize(self.project_visual(visual_BTSD), dim=-1)

        similarity_BTCS = audio_BTCE @ positions_BTSE.transpose(2, 3)
        logits_BTCS = (similarity_BTCS - self.settings.threshold) / self.settings.temperature
        logits_BTCS = logits_BTCS + functional.logsigmoid(audio_class_BTC)[..., None]
        if self.num_classes > 1:
            logits_BTCS = torch.cat([torch.zeros_like(logits_BTCS[:, :, :1]), logits_BTCS], 2)
        return MSSLOutput(
            logits_BTKHW=logits_BTCS.unflatten(-1, map_FDhw.shape[-2:]),
            audio_class_BTC=audio_class_BTC,
            visual_class_BTC=self.classify_visual(visual_BTD),
            audio_BTD=audio_BTD,
            visual_BTD=visual_BTD,
            audio_BTCE=audio_BTCE,
            visual_BTCE=visual_BTCE,
            correspond=self.correspond,
            stage_two=self.stage_two,
        )

    def build_criterion(self, loss: MSSLLoss) -> Criterion:
        return Criterion(loss, self.num_classes)

    def on_step_end(self, output: Any, step: int, total_steps: int) -> None:
        """Begin the second stage when it is due."""
        if step >= self.settings.stage_one * total_steps:
            self.stage_two.fill_(True)
