"""Backbones in checkpoints of AVSBench's public code and of code derived from it, such as AVSegFormer's.

That code has PVT-v2 under the names of its authors, and a ResNet-50 whose last two stages exist twice, as `layer3_1`
and `layer3_2`; only the first of each is used.
"""

from __future__ import annotations

import re

import torch

from qdformer.models.backbones.base import Backbone
from qdformer.models.backbones.from_transformers import build
from qdformer.models.backbones.weights import BackboneError, Weights

PVT_TO_TRANSFORMERS = (
    (r"^patch_embed(\d)\.", lambda found: f"{_stage(found)}.patch_embedding."),
    (r"^block(\d)\.", lambda found: f"{_stage(found)}.blocks."),
    (r"^norm(\d)\.", lambda found: f"{_stage(found)}.layer_norm."),
    (r"patch_embedding\.norm\.", "patch_embedding.layer_norm."),
    (r"\.norm(\d)\.", r".layer_norm_\1."),
    (r"\.attn\.q\.", ".attention.query."),
    (r"\.attn\.sr\.", ".attention.spatial_reduction."),
    (r"\.attn\.norm\.", ".attention.layer_norm."),
    (r"\.attn\.proj\.", ".attention.proj."),
    (r"\.mlp\.fc(\d)\.", r".mlp.dense\1."),
)
"""Patterns in the tensor names of PVT-v2's authors, and the names in transformers."""


def build_from_checkpoint(name: str, weights: Weights, prefix: str) -> Backbone:
    """The backbone `name` with the tensors of `weights` whose names begin with `prefix`.

    Raises `BackboneError` if they do not fit.
    """
    if name != "resnet50" and not name.startswith("pvt_v2"):
        raise BackboneError(f"{weights.path}: has a ResNet-50 or a PVT-v2; the settings say backbone: {name}")
    tensors = {key.removeprefix(prefix): x for key, x in weights.tensors.items() if key.startswith(prefix)}
    if name == "resnet50":
        tensors = {re.sub(r"^layer([34])_1\.", r"layer\1.", key): x for key, x in tensors.items()}
        tensors = {key: x for key, x in tensors.items() if not key.startswith(("layer3_2.", "layer4_2."))}
    else:
        tensors = _pvt(tensors)
    return build(name, Weights(weights.path, tensors))


def _pvt(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """PVT-v2's tensors under transformers' names; keys and values are one tensor in the authors' code."""
    renamed = {}
    for key, x in tensors.items():
        for pattern, new in PVT_TO_TRANSFORMERS:
            key = re.sub(pattern, new, key)
        if ".attn.kv." in key:
            for part, half in zip(("key", "value"), x.chunk(2), strict=True):
                renamed[key.replace(".attn.kv.", f".attention.{part}.")] = half
        else:
            renamed[key] = x
    return renamed


def _stage(found: re.Match[str]) -> str:
    return f"encoder.layers.{int(found[1]) - 1}"
