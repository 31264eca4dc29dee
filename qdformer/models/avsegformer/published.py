"""Checkpoints of the authors' code (https://github.com/vvvb-github/AVSegFormer): names and layouts of their tensors.

Shapes: H heads, L levels, K points, D hidden dimension.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdformer.models.avsegformer.model import AVSegFormer
from qdformer.models.backbones.avsbench import build_from_checkpoint
from qdformer.models.backbones.weights import Weights, read_weights
from qdformer.models.common.published_tensors import Renaming, Tensor, load_tensors, rename

if TYPE_CHECKING:
    from qdformer.config.methods.avsegformer import AVSegFormerSettings

RENAMED: tuple[Renaming, ...] = (
    (r"^audio_proj\.", "audio_projection."),
    (r"^head\.level_embed$", "encoder.level_LD"),
    (r"^head\.learnable_query\.weight$", "learned_queries_QD"),
    (r"^head\.query_generator\.query\.weight$", "audio_queries_QD"),
    (r"^head\.query_generator\.layers\.", "query_generator."),
    (r"^head\.transformer\.encoder\.layers\.", "encoder.layers."),
    (r"^head\.transformer\.decoder\.layers\.", "decoder."),
    (r"^head\.in_proj\.(\d)\.", lambda found: f"encoder.projections.{4 * 2 ** int(found[1])}."),
    (r"^head\.lateral_conv\.", "encoder.lateral."),
    (r"^head\.out_conv\.", "encoder.smooth."),
    (r"^head\.mlp\.layers\.(\d)\.", lambda found: f"mask_head.mlp.{2 * int(found[1])}."),
    (r"^head\.fc\.0\.", "mask_head.narrow."),
    (r"^head\.fc\.2\.", "mask_head.smooth."),
    (r"^head\.fc\.4\.", "mask_head.out."),
    (r"^head\.fusion_block\.proj\.", "mixer.attention.out_proj."),
    (r"^(encoder\..*)self_attn\.sampling_offsets\.", r"\1attention.offsets."),
    (r"^(encoder\..*)self_attn\.attention_weights\.", r"\1attention.weights."),
    (r"^(encoder\..*)self_attn\.value_proj\.", r"\1attention.value."),
    (r"^(encoder\..*)self_attn\.output_proj\.", r"\1attention.out."),
    (r"^(encoder\.layers\.\d+\.)norm1\.", r"\1attention.norm."),
    (r"^(encoder\.layers\.\d+\.)norm2\.", r"\1feed_forward.norm."),
    (r"\.self_attn\.", ".self_attention.attention."),
    (r"\.cross_attn\.", ".cross_attention.attention."),
    (r"\.norm1\.", ".self_attention.norm."),
    (r"\.norm2\.", ".cross_attention.norm."),
    (r"\.norm3\.", ".feed_forward.norm."),
    (r"\.(linear1|ffn\.0)\.", ".feed_forward.wide."),
    (r"\.(linear2|ffn\.2)\.", ".feed_forward.narrow."),
)
"""Patterns in the names of the authors' code, and what each becomes here; all are applied in this order."""
UNUSED_PREFIXES = ("vggish.", "head.fpn.", "head.attn_fc.")
"""Tensors of parts that this model does not have."""
MIXER = "head.fusion_block."


def load_published(path: str, settings: AVSegFormerSettings, num_classes: int) -> AVSegFormer:
    """The model with the weights of a checkpoint of the authors' code, backbone included.

    `settings` must be those of the checkpoint: a published recipe, such as the preset s4-avsegformer. The file is read
    without running code in it. Raises `BackboneError`, which names the file and tensor, if a tensor is missing, has
    another shape, or belongs to no part of the model.
    """
    weights = read_weights(path)
    model = AVSegFormer(settings.without_weights(), num_classes)
    model.backbone = build_from_checkpoint(settings.backbone, weights, "backbone.")
    head = convert(weights, settings.num_heads)
    for name, x in model.state_dict().items():
        if name not in head and name.endswith(("in_proj_bias", "out_proj.bias")):
            head[name] = Tensor(name, torch.zeros_like(x))  # attention without biases in the authors' code
    load_tensors(model, head, weights, settings.title)
    return model


def convert(weights: Weights, num_heads: int) -> dict[str, Tensor]:
    """The tensors of a checkpoint of the authors' code, but those of the backbone, under this model's names."""
    converted: dict[str, Tensor] = {}
    for name, x in weights.tensors.items():
        if name.startswith((*UNUSED_PREFIXES, "backbone.", MIXER)) and not name.startswith(f"{MIXER}proj."):
            continue
        renamed = rename(name, RENAMED)
        if ".attention.offsets." in renamed and x.shape[0] % (2 * num_heads) == 0:
            # Rows in the order [H, L, K, x and y] -> rows in the order [x and y, H, L, K].
            x = x.unflatten(0, (num_heads, -1, 2)).movedim(2, 0).flatten(0, 2).contiguous()
        converted[renamed] = Tensor(name, x)
    parts = [weights.tensors.get(f"{MIXER}{part}_proj.weight") for part in ("q", "kv")]
    joined = torch.cat([x for x in parts if x is not None]) if any(x is not None for x in parts) else torch.empty(0)
    converted["mixer.attention.in_proj_weight"] = Tensor(f"{MIXER}q_proj.weight and {MIXER}kv_proj.weight", joined)
    return converted
