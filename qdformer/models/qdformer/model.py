"""QDFormer (Li et al., CVPR 2024): segmentation of sounding objects by quantization-based semantic decomposition.

Shapes: B clips, T frames (one per second), N tokens or queries, S visual tokens of a frame, A audio features (128),
D hidden dimension, C object classes, H W pixels (mask logits: a quarter, rounded up), F = B * T frames of all clips.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdformer.models.backbones import build_backbone
from qdformer.models.common.fpn import FeaturePyramid
from qdformer.models.common.method import Method, Prediction, check_inputs
from qdformer.models.common.pixel_encoder import PixelEncoder
from qdformer.models.common.queries import predict_queries
from qdformer.models.common.transformer import LinearBottleneck
from qdformer.models.qdformer.criterion import Criterion
from qdformer.models.qdformer.decomposition import SemanticDecoder, mean_cosine_similarity
from qdformer.models.qdformer.fusion import Fusion
from qdformer.models.qdformer.mask_decoder import MaskDecoder
from qdformer.models.qdformer.output import LayerOutput, QDFormerOutput
from qdformer.models.qdformer.quantizer import Quantizer, QuantizerStats, perplexity
from qdformer.models.qdformer.recombination import Recombination
from qdformer.utils.constants import EMBEDDING_SIZE
from qdformer.utils.distributed import rank, sum_over_ranks

if TYPE_CHECKING:
    from qdformer.config.methods.qdformer import Loss, QDFormerSettings

FOREGROUND_THRESHOLD = 0.4
"""A pixel is foreground if its highest probability over the queries exceeds this.

It is below one half because the focal loss keeps probabilities low; chosen from 0.3 to 0.6 on the validation split of
`stamps`.
"""


class QDFormer(Method):
    """QDFormer, with the parts that Table 2 of the paper adds one by one. Query i of frame t is

    - without `decompose` ("baseline"): p_i + f'_a,t, the prototype plus the fused audio feature of the frame;
    - with `separate`: p_i + f'_a,tv with v = i mod V, where f'_a,tv comes from the v-th of the V tracks into which the
      audio was separated in the time domain before feature extraction; the masks of all tracks' queries are joined like
      those of the other rows, each pixel taking the class with the highest p(class) * mask;
    - with `decompose`: the clip's semantic token g_i (Eq. 4), the same in all frames;
    - with `quantize`: VQ(g_i) (Eq. 2);
    - with `recombine`: the same, on visual features that filters from VQ(g_i) have modulated (Eq. 5);
    - with `calibrate`: VQ(l_i,t), the frame's own semantic token (Eq. 6) quantized with the clip's codebook.

    Without `quantize`, VQ is the identity. All features of the audio that reach the mask decoder with `quantize` are
    codes, except with `query_residual_dim` above 0, which adds f'_a,t to the queries of all rows with `decompose`, and
    with `filters_from: continuous`.
    """

    settings: QDFormerSettings
    no_decay = ("prototypes_ND", "codebook_weight", "level_LD")

    def __init__(self, settings: QDFormerSettings, num_classes: int) -> None:
        super().__init__()
        hidden_dim, num_heads, ffn_dim, layers = (
            settings.hidden_dim,
            settings.num_heads,
            settings.ffn_dim,
            settings.decoder_layers,
        )
        self.settings = settings
        self.num_classes = num_classes
        self.backbone = build_backbone(settings)
        self.pixel_encoder = PixelEncoder(
            settings.encoder,
            self.backbone.channels,
            hidden_dim,
            num_heads,
            ffn_dim,
            settings.encoder_layers,
            settings.mask_stride,
        )
        self.feature_pyramid = FeaturePyramid(
            settings.encoder,
            self.pixel_encoder.strides,
            self.backbone.channels[settings.mask_stride],
            hidden_dim,
            settings.mask_dim,
        )
        self.audio_projection = nn.Linear(EMBEDDING_SIZE, hidden_dim)
        self.fusion = Fusion(hidden_dim, num_heads, ffn_dim)
        self.prototypes_ND = nn.Parameter(torch.randn(settings.num_prototypes, hidden_dim))
        self.global_decoder = SemanticDecoder(hidden_dim, num_heads, ffn_dim, layers) if settings.decompose else None
        self.local_prototypes_ND = None
        if settings.calibrate and not settings.share_prototypes:
            self.local_prototypes_ND = nn.Parameter(torch.randn(settings.num_prototypes, hidden_dim))
        self.quantizer = None
        if settings.quantize:
            self.quantizer = Quantizer(
                settings.codebook_size,
                hidden_dim,
                delayed=settings.quantize_after > 0,
                normalized=settings.normalize_codes,
                ema=settings.codebook == "ema",
                reset_dead_after=settings.reset_dead_codes_after,
            )
        self.recombination = None
        if settings.recombine:
            self.recombination = Recombination(hidden_dim, settings.num_prototypes, settings.recombination_norm)
        self.local_decoder = SemanticDecoder(hidden_dim, num_heads, ffn_dim, layers) if settings.calibrate else None
        self.query_residual = None
        if settings.decompose and settings.query_residual_dim:
            self.query_residual = LinearBottleneck(hidden_dim, settings.query_residual_dim)
        self.mask_decoder = MaskDecoder(
            hidden_dim, num_heads, ffn_dim, layers, num_classes, settings.mask_dim, settings.mask_head
        )
        self._epoch_sums: dict[str, torch.Tensor] = {}  # over the clips that this rank has processed

    def forward(
        self,
        images_BTCHW: torch.Tensor,
        audio_BTA: torch.Tensor,
        valid_BT: torch.Tensor | None = None,
        maps: dict[int, torch.Tensor] | None = None,
    ) -> QDFormerOutput:
        """Frames with pixel values 0..255 and one VGGish embedding per frame -> `QDFormerOutput`.

        With `separate`, the embeddings are those of V <= N separated tracks, [B, T, V, A]. `valid_BT` is false for
        padding frames; no other frame attends to them. A clip without a valid frame is computed, but influences no
        statistics. `maps`: the backbone's maps of the frames by stride, [B * T, C, h, w], if they have been computed
        before. In training mode the output contains the predictions of every decoder layer. Raises `ValueError` for
        shapes that do not fit.
        """
        signals = self.settings.num_prototypes if self.settings.separate else None
        B, T = check_inputs(images_BTCHW, audio_BTA, signals)
        if valid_BT is None:
            valid_BT = torch.ones(B, T, dtype=torch.bool, device=images_BTCHW.device)
        attended_BT = valid_BT | ~valid_BT.any(-1, keepdim=True)  # attention to no frame at all would be NaN
        if maps is None:
            maps = self.backbone_maps(images_BTCHW)
        visual_FSD, position_SD, sizes = self.pixel_encoder(maps)  # F_v
        audio_BTD = self.audio_projection(audio_BTA)  # F_a

        fused = self.pixel_encoder.token_slice(sizes, self.settings.fusion_stride)
        fused_BTD = self.fusion(  # Eq. 3: F'_a
            audio_BTD, visual_FSD[:, fused].unflatten(0, (B, T)), position_SD[fused], attended_BT
        )
        global_BND = local_BTND = None
        if self.global_decoder is not None:
            global_BND = self.global_decoder(self.prototypes_ND, fused_BTD, ~attended_BT)  # Eq. 4
        if self.local_decoder is not None:
            frames_BTD = audio_BTD if self.settings.calibrate_from == "audio" else fused_BTD
            local_FND = self.local_decoder(self._local_prototypes(), frames_BTD.flatten(0, 1)[:, None])  # Eq. 6
            local_BTND = local_FND.unflatten(0, (B, T))
        clip_tokens_BND, frame_tokens_BTND, quantization = self._quantize(global_BND, local_BTND, valid_BT)  # Eq. 2

        if self.recombination is not None:
            filter_source_BND = clip_tokens_BND if self.settings.filters_from == "quantized" else global_BND
            visual_BTSD = self.recombination(visual_FSD.unflatten(0, (B, T)), filter_source_BND, valid_BT)
            visual_FSD = visual_BTSD.flatten(0, 1)  # Eq. 5: F'_v
        pyramid_FSD, mask_features_FMHW = self.feature_pyramid(  # F_v^out
            visual_FSD, sizes, maps[self.settings.mask_stride]
        )
        memory = self.pixel_encoder.memory_slice(sizes)
        decoded = self.mask_decoder(
            self._queries(fused_BTD, clip_tokens_BND, frame_tokens_BTND).flatten(0, 1),
            pyramid_FSD[:, memory],
            position_SD[memory],
            mask_features_FMHW,
            all_layers=self.training,
        )  # Eq. 7
        *auxiliary, last = [
            LayerOutput(*(x.unflatten(0, (B, T)) for x in layer))
            for layer in zip(decoded.class_logits_RFNC, decoded.boxes_RFN4, decoded.mask_logits_RFNHW, strict=True)
        ]
        return QDFormerOutput(
            last.class_logits_BTNC,
            last.boxes_BTN4,
            last.mask_logits_BTNHW,
            auxiliary,
            quantization,
            valid_BT,
            fused_BTD,
            global_BND,
            local_BTND,
            self._classify(clip_tokens_BND),
            self._classify(frame_tokens_BTND),
        )

    def build_criterion(self, loss: Loss) -> Criterion:
        return Criterion(loss, self.num_classes, self.settings.mask_stride)

    def on_epoch_start(self) -> None:
        self._epoch_sums = {}
        if self.quantizer is not None:
            self.quantizer.clear_token_buffer()

    def on_step_end(self, output: QDFormerOutput, step: int, total_steps: int) -> None:
        """Update the codebook outside of the gradient, start quantization when it is due, and collect metrics."""
        tokens_BND, stats = output.tokens_BND, output.quantization
        if tokens_BND is None:
            return
        assert output.valid_BT is not None
        counted_B = output.valid_BT.any(-1)
        tokens_BND = tokens_BND[counted_B]
        self._add("clips", counted_B.sum())
        similarity = mean_cosine_similarity(tokens_BND).double() * len(tokens_BND)
        self._add("token_similarity", similarity if len(tokens_BND) else torch.zeros_like(similarity))
        if stats is not None:
            self._add("global_counts", stats.global_counts_K)
            self._add("local_counts", stats.local_counts_K)
            if self.quantizer is not None:
                self.quantizer.update(tokens_BND, stats.global_codes_BN[counted_B])
                if self._quantization_is_due(step, total_steps):
                    self.quantizer.start_quantizing()

    def on_epoch_end(self, step: int, total_steps: int) -> dict[str, float]:
        """`token_similarity` with `decompose`, and with `quantize` the perplexity of the codes that the tokens used."""
        if self.quantizer is not None and self._quantization_is_due(step, total_steps):
            self.quantizer.start_quantizing(force=True)  # the epoch had too few tokens for k-means
        metrics: dict[str, float] = {}
        if self.global_decoder is not None:
            sums = self._global_sums()
            metrics["token_similarity"] = float(sums["token_similarity"] / sums["clips"])
            if self.quantizer is not None:
                metrics["codebook_perplexity"] = perplexity(sums["global_counts"])
                metrics["codebook_perplexity_local"] = perplexity(sums["local_counts"])
        return metrics

    def epoch_state(self) -> dict[str, Any]:
        buffer = self.quantizer.buffered_tokens() if self.quantizer is not None else []
        return {"sums": self._global_sums(), "token_buffer": buffer}

    def load_epoch_state(self, state: dict[str, Any]) -> None:
        device = self.prototypes_ND.device
        self._epoch_sums = {name: (value * (rank() == 0)).to(device) for name, value in state["sums"].items()}
        if self.quantizer is not None:
            self.quantizer.restore_token_buffer(state["token_buffer"])

    def _add(self, name: str, value: torch.Tensor) -> None:
        self._epoch_sums[name] = self._epoch_sums.get(name, 0) + value

    def _global_sums(self) -> dict[str, torch.Tensor]:
        return {name: sum_over_ranks(value).cpu() for name, value in sorted(self._epoch_sums.items())}

    def _quantization_is_due(self, step: int, total_steps: int) -> bool:
        waiting = self.quantizer is not None and not self.quantizer.started
        return waiting and step >= self.settings.quantize_after * total_steps

    def _local_prototypes(self) -> torch.Tensor:
        return self.prototypes_ND if self.local_prototypes_ND is None else self.local_prototypes_ND

    def _quantize(
        self, global_BND: torch.Tensor | None, local_BTND: torch.Tensor | None, valid_BT: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, QuantizerStats | None]:
        """VQ(g), VQ(l) and the statistics of quantization; without `quantize`, the tokens as they are."""
        quantizer = self.quantizer
        if quantizer is None or global_BND is None:
            return global_BND, local_BTND, None
        counted_B = valid_BT.any(-1)
        quantized_BND, codes_BN = quantizer(global_BND, counted_B)
        global_counts_K = quantizer.count_codes(codes_BN, counted_B[:, None].expand_as(codes_BN))
        stats = QuantizerStats(
            codebook_errors_BN=quantizer.codebook_errors(global_BND, codes_BN),
            commitment_errors_BN=quantizer.commitment_errors(global_BND, codes_BN),
            local_commitment_errors_BTN=None,
            global_codes_BN=codes_BN,
            local_codes_BTN=None,
            global_counts_K=global_counts_K,
            local_counts_K=torch.zeros_like(global_counts_K),
        )
        if local_BTND is None:
            return quantized_BND, None, stats
        quantized_BTND, local_codes_BTN = quantizer(local_BTND, counted_B)
        stats.local_codes_BTN = local_codes_BTN
        stats.local_commitment_errors_BTN = quantizer.commitment_errors(local_BTND, local_codes_BTN)
        stats.local_counts_K = quantizer.count_codes(local_codes_BTN, valid_BT[..., None].expand_as(local_codes_BTN))
        return quantized_BND, quantized_BTND, stats

    def _queries(
        self, fused_BTD: torch.Tensor, clip_tokens_BND: torch.Tensor | None, frame_tokens_BTND: torch.Tensor | None
    ) -> torch.Tensor:
        """The queries of the mask decoder, [B, T, N, D]."""
        if clip_tokens_BND is None:
            if not self.settings.separate:
                return self.prototypes_ND + fused_BTD[:, :, None]
            track_N = torch.arange(len(self.prototypes_ND), device=fused_BTD.device) % fused_BTD.shape[2]
            return self.prototypes_ND + fused_BTD[:, :, track_N]
        queries_BTND = frame_tokens_BTND
        if queries_BTND is None:
            queries_BTND = clip_tokens_BND[:, None].expand(-1, fused_BTD.shape[1], -1, -1)
        if self.query_residual is not None:
            queries_BTND = queries_BTND + self.query_residual(fused_BTD)[:, :, None]
        return queries_BTND

    def _classify(self, tokens: torch.Tensor | None) -> torch.Tensor | None:
        """Logits of the mask decoder's class head for tokens [..., D], in training mode only."""
        return self.mask_decoder.classify(tokens).float() if self.training and tokens is not None else None

    def decode(self, output: QDFormerOutput, frame_size: tuple[int, int]) -> Prediction:
        """See `predict_queries`."""
        return predict_queries(output, self.settings.mask_stride, frame_size, FOREGROUND_THRESHOLD)
