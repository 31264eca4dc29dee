"""AVSegFormer (Gao et al., AAAI 2024, arXiv 2307.01146): audio-visual segmentation with a transformer.

Shapes: B clips, T frames (one per second), Q queries, S visual tokens of a frame, A audio features (128), D hidden
dimension, K logits of a pixel (1, or with several classes one for each and one for the background), H W pixels,
F = B * T frames of all clips.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from qdformer.models.avsegformer.criterion import Criterion
from qdformer.models.avsegformer.encoder import Encoder, MaskHead, Mixer
from qdformer.models.avsegformer.output import AVSegFormerOutput
from qdformer.models.common.deformable import DeformableAttention
from qdformer.models.common.pixel_method import PixelMethod
from qdformer.models.common.pixels import number_of_logits
from qdformer.models.common.transformer import DecoderLayer
from qdformer.utils.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from qdformer.config.methods.avsegformer import AVSegFormerLoss, AVSegFormerSettings


class AVSegFormer(PixelMethod):
    """AVSegFormer. Frames are processed independently of each other.

    - Query generator: Q learned queries attend to each other and to the audio feature of the frame, layer by layer;
      a second set of learned queries is added to the result ("audio queries" plus "learnable queries").
    - Encoder: see `Encoder`. Decoder ("sparse audio-visual decoder"): the queries attend to each other and to the
      encoded tokens of the frame.
    - Mixer ("dense audio-visual mixer"): the audio scales the channels of the mask features, see `Mixer`.
    - Mask: M = FC(F + MLP(F * Q)), see `MaskHead`.
    - Loss: L = L_IoU + lambda L_mix, see `Criterion`.

    Layers, sizes and initialization are those of the authors' code, with these differences:

    - VGGish is not part of the model; its features come from the stage `features`.
    - There is no dropout (0.1 in the authors' code): the result must not depend on the number of ranks.
    - The batch normalization of ResNet-50 keeps its pretrained statistics, as for all methods of this project, and the
      backbone is trained from the first epoch on; in the authors' code it is frozen for 5 epochs on S4 and 10 on MS3.
    - The attention of the query generator and of the mixer has biases, which start at 0.
    - The layers `fpn` and `attn_fc` of the authors' head, which compute nothing that reaches its output, do not exist.
    - `mask_stride` 8 and an `output_stride` above 1 are additions that save computation.
    """

    settings: AVSegFormerSettings
    no_decay = ("level_LD", "learned_queries_QD", "audio_queries_QD")

    def __init__(self, settings: AVSegFormerSettings, num_classes: int) -> None:
        super().__init__(settings, num_classes)
        dims = settings.hidden_dim, settings.num_heads, settings.ffn_dim
        self.output_stride = settings.output_stride
        self.audio_projection = nn.Linear(EMBEDDING_SIZE, settings.hidden_dim)
        self.encoder = Encoder(self.backbone.channels, settings.mask_stride, *dims, settings.encoder_layers)
        self.audio_queries_QD = nn.Parameter(torch.empty(settings.num_queries, settings.hidden_dim))
        self.learned_queries_QD = nn.Parameter(torch.empty(settings.num_queries, settings.hidden_dim))
        self.query_generator = nn.ModuleList(
            DecoderLayer(settings.hidden_dim, settings.num_heads, settings.generator_ffn_dim, "gelu")
            for _ in range(settings.generator_layers)
        )
        self.decoder = nn.ModuleList(DecoderLayer(*dims, "gelu") for _ in range(settings.decoder_layers))
        self.mixer = Mixer(settings.hidden_dim, settings.num_heads)
        self.mask_head = MaskHead(
            settings.hidden_dim,
            settings.ffn_dim,
            settings.num_queries,
            number_of_logits(num_classes),
            settings.mask_stride // settings.output_stride,
        )
        self._initialize()
        for part in (self.encoder, self.mask_head):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def _initialize(self) -> None:
        """Xavier initialization of all matrices but those of the backbone, and of deformable attention's own."""
        fixed = {id(parameter) for parameter in (*self.backbone.parameters(), *self.audio_projection.parameters())}
        for module in self.encoder.modules():
            if isinstance(module, DeformableAttention):
                fixed |= {id(module.offsets.weight), id(module.weights.weight)}
                nn.init.zeros_(module.value.bias)
                nn.init.zeros_(module.out.bias)
        for parameter in self.parameters():
            if parameter.ndim > 1 and id(parameter) not in fixed:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.encoder.level_LD)

    def segment(
        self,
        maps: dict[int, torch.Tensor],
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor,
        frame_size: tuple[int, int],
    ) -> AVSegFormerOutput:
        B, T = valid_BT.shape
        audio_F1D = self.audio_projection(audio_BTA).flatten(0, 1)[:, None]
        queries_FQD = self.audio_queries_QD.expand(B * T, -1, -1)
        for layer in self.query_generator:
            queries_FQD = layer(queries_FQD, audio_F1D)
        queries_FQD = queries_FQD + self.learned_queries_QD
        tokens_FSD, mask_features_FDHW = self.encoder(maps)
        for layer in self.decoder:
            queries_FQD = layer(queries_FQD, tokens_FSD)
        mixed_FDHW = self.mixer(mask_features_FDHW, audio_F1D)
        logits_FKHW = self.mask_head(queries_FQD, mixed_FDHW)
        return AVSegFormerOutput(
            logits_FKHW.float().unflatten(0, (B, T)), mixed_FDHW.float().mean(1).unflatten(0, (B, T))
        )

    def build_criterion(self, loss: AVSegFormerLoss) -> Criterion:
        return Criterion(loss, self.num_classes)
