"""CATR (Li et al., ACM MM 2023, arXiv 2309.09709): combinatorial-dependence audio-queried transformer.

Shapes: B clips, T frames (one per second), N queries, S visual tokens of a frame, X = S + T tokens of a frame's picture
and of the clip's audio, A audio features (128), D hidden dimension, C object classes, H W pixels, F = B * T frames of
all clips.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from qdformer.models.backbones import build_backbone
from qdformer.models.catr.criterion import Criterion
from qdformer.models.catr.encoder import Block, BlockGate, SpatialDecoder, SpatialLayer, join, own_audio
from qdformer.models.catr.output import CATROutput, LayerOutput
from qdformer.models.common.aspp import ASPP
from qdformer.models.common.method import Method, Prediction, check_inputs
from qdformer.models.common.queries import predict_queries
from qdformer.models.common.transformer import MLP, DecoderLayer, flatten_map, map_position_encoding
from qdformer.utils.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from qdformer.config.methods.catr import CATRLoss, CATRSettings

FOREGROUND_THRESHOLD = 0.5
"""A pixel is foreground if its highest probability over the queries exceeds this."""


class CATR(Method):
    """CATR.

    - Backbone maps -> ASPP, all with D channels. The coarsest map is fused with the audio.
    - Decoupled audio-video transformer (`Block`): the blocks join audio and video within each frame, then over time.
      The blockwise-encoding gate (`BlockGate`) adds the visual features of all blocks.
    - Mask features: `SpatialDecoder`.
    - Audio-queried decoder: learned queries, in each frame, attend to each other and to the joint tokens of the frame's
      picture and the clip's audio, which a spatial encoder of its own has encoded. With `audio_queries` they start from
      the encoded audio feature of the frame.
    - Each query yields class logits and, by an MLP, a 1x1 convolution that computes its mask from the mask features.

    Differences from the authors' code, which has a recipe for S4 only:

    - Classes: it has the two classes "referred" and "not referred" for one target, the sounding objects. Here a query
      has C + 1 classes, which is the same for C = 1, and the targets are the classes that sound in the clip.
    - `audio_queries`: its queries start from zeros, so that audio constrains them through the joint tokens alone.
    - There is no dropout (0.1 there): the result must not depend on the number of ranks.
    - Audio and video are fused in the map of stride 32 instead of the one of stride 8, which has 16 times as many
      tokens, and the mask features have `mask_stride` instead of 16: see `SpatialDecoder`.
    - See `Block`, `BlockGate` and `Criterion` for others. The code is not compared in outputs: too much differs.
    - Prediction: it takes the mask of the query with the highest score; here see `predict_queries`.
    """

    settings: CATRSettings
    no_decay = ("queries_ND",)

    def __init__(self, settings: CATRSettings, num_classes: int) -> None:
        super().__init__()
        hidden_dim, num_heads, ffn_dim = settings.hidden_dim, settings.num_heads, settings.ffn_dim
        self.settings = settings
        self.num_classes = num_classes
        self.backbone = build_backbone(settings)
        self.aspp = nn.ModuleDict(
            {str(stride): ASPP(self.backbone.channels[stride], hidden_dim) for stride in settings.map_strides}
        )
        self.video_projection = nn.Linear(hidden_dim, hidden_dim)
        self.audio_projection = nn.Sequential(nn.Linear(EMBEDDING_SIZE, hidden_dim), nn.LayerNorm(hidden_dim))
        self.spatial_encoder = nn.ModuleList(
            SpatialLayer(hidden_dim, num_heads, ffn_dim) for _ in range(settings.encoder_layers)
        )
        self.blocks = nn.ModuleList(
            Block(hidden_dim, num_heads, ffn_dim, last=index == settings.encoder_layers - 1)
            for index in range(settings.encoder_layers)
        )
        self.gate = BlockGate(hidden_dim, settings.encoder_layers)
        self.spatial_decoder = SpatialDecoder(hidden_dim, len(settings.map_strides) - 1, settings.mask_dim)
        self.queries_ND = nn.Parameter(torch.randn(settings.num_queries, hidden_dim))
        self.decoder = nn.ModuleList(
            DecoderLayer(hidden_dim, num_heads, ffn_dim) for _ in range(settings.decoder_layers)
        )
        self.norm = nn.LayerNorm(hidden_dim)
        self.classify = nn.Linear(hidden_dim, num_classes + 1)
        self.filter = MLP(hidden_dim, hidden_dim, settings.mask_dim, layers=2)
        for layers in (self.spatial_encoder, self.blocks, self.decoder):
            for parameter in layers.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        for part in (self.aspp, self.gate, self.spatial_decoder):
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it

    def forward(
        self,
        images_BTCHW: torch.Tensor,
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor | None = None,
        maps: dict[int, torch.Tensor] | None = None,
    ) -> CATROutput:
        """See `Method`. In training mode the output contains the predictions of every decoder layer."""
        B, T = check_inputs(images_BTCHW, audio_BTA)
        if valid_BT is None:
            valid_BT = torch.ones(B, T, dtype=torch.bool, device=images_BTCHW.device)
        attended_BT = valid_BT | ~valid_BT.any(-1, keepdim=True)  # attention to no frame at all would be NaN
        if maps is None:
            maps = self.backbone_maps(images_BTCHW)
        *finer, fused = [self.aspp[str(stride)](maps[stride]) for stride in self.settings.map_strides]
        size = (fused.shape[2], fused.shape[3])
        position_SD = map_position_encoding(*size, self.settings.hidden_dim, fused.device)
        visual_BTSD = self.video_projection(flatten_map(fused)).unflatten(0, (B, T))
        audio_BTD = self.audio_projection(audio_BTA)

        memory_FXD, position_XD, padding_FX = join(visual_BTSD, audio_BTD, position_SD, attended_BT)
        for layer in self.spatial_encoder:
            memory_FXD = layer(memory_FXD, position_XD, padding_FX)
        encoded_BTD = own_audio(memory_FXD[:, -T:].unflatten(0, (B, T)))

        encoded = []
        for block in self.blocks:
            visual_BTSD, audio_BTD = block(visual_BTSD, audio_BTD, position_SD, attended_BT)
            encoded.append(visual_BTSD)
        mask_features_FMHW = self.spatial_decoder(self.gate(encoded, size, valid_BT), finer[::-1])

        queries_FND = self.queries_ND.new_zeros(B * T, len(self.queries_ND), self.settings.hidden_dim)
        if self.settings.audio_queries:
            queries_FND = queries_FND + encoded_BTD.flatten(0, 1)[:, None]
        layers = []
        for layer in self.decoder:
            queries_FND = layer(queries_FND, memory_FXD, self.queries_ND, position_XD, padding_FX)
            layers.append(queries_FND)
        *auxiliary, last = [
            self._predict_layer(self.norm(x_FND), mask_features_FMHW, (B, T))
            for x_FND in (layers if self.training else layers[-1:])
        ]
        return CATROutput(last.class_logits_BTNC, last.mask_logits_BTNHW, auxiliary)

    def _predict_layer(
        self, queries_FND: torch.Tensor, mask_features_FMHW: torch.Tensor, frames: tuple[int, int]
    ) -> LayerOutput:
        masks_FNP = self.filter(queries_FND) @ mask_features_FMHW.flatten(2)
        masks_FNHW = masks_FNP.unflatten(2, mask_features_FMHW.shape[-2:])
        return LayerOutput(
            self.classify(queries_FND).float().unflatten(0, frames), masks_FNHW.float().unflatten(0, frames)
        )

    def build_criterion(self, loss: CATRLoss) -> Criterion:
        return Criterion(loss, self.num_classes, self.settings.mask_stride)

    def decode(self, output: CATROutput, frame_size: tuple[int, int]) -> Prediction:
        """See `predict_queries`."""
        return predict_queries(output, self.settings.mask_stride, frame_size, FOREGROUND_THRESHOLD)
