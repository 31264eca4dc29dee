"""Checkpoints in the format of other public codes: their tensors' names and shapes with values of our own."""

from __future__ import annotations

import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import torch

from tests.helpers import PROJECT


def golden(name: str) -> dict[str, Any]:
    return json.loads((PROJECT / "tests/golden" / f"{name}.json").read_text())


def small_avsegformer(backbone: str, classes: int, queries: int) -> dict[str, list[int]]:
    """The tensors of a checkpoint of AVSegFormer's public code with one layer of each transformer and few queries."""
    found = published_shapes(golden("avsegformer")["tensors"][backbone], layers=1)
    for name in ("head.learnable_query.weight", "head.query_generator.query.weight"):
        found[name] = [queries, 256]
    found["head.mlp.layers.0.weight"] = [2048, queries, 1, 1]
    outputs = 1 if classes == 1 else classes + 1
    found["head.fc.4.weight"] = found["head.attn_fc.4.weight"] = [outputs, 32, 1, 1]
    return found


def published_shapes(tensors: dict[str, list[int]], layers: int | None = None) -> dict[str, list[int]]:
    """The shapes by name, of at most `layers` layers of each transformer."""
    outside = re.compile(r"^head\..*\.layers\.(\d+)\.")
    found = {name: outside.match(name) if ".mlp." not in name else None for name in tensors}
    return {
        name: shape
        for name, shape in tensors.items()
        if layers is None or not (match := found[name]) or int(match[1]) < layers
    }


def value(name: str, shape: list[int]) -> torch.Tensor:
    """Values that depend on the tensor's name alone, large enough for the output to depend on the input."""
    seed = zlib.crc32(name.encode()) % 10007
    x = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * (1 + seed / 10007) + seed).float()
    if name.endswith("running_var"):
        return (1 + x / 2).reshape(shape)
    if len(shape) > 1:
        gain = 2 if name.startswith("backbone.") else 8
        return (x * math.sqrt(gain / math.prod(shape[1:]))).reshape(shape)
    return (x / 5 + (1 if name.endswith("weight") else 0)).reshape(shape)


def constant(name: str, shape: list[int]) -> torch.Tensor:
    """One value for the whole tensor, which takes no space in a file."""
    return torch.full([], zlib.crc32(name.encode()) % 10007 / 10007).expand(shape)


def write_checkpoint(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """A file as the public codes write it: the state dict of the model in `DataParallel`."""
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, path)
    return path


def published_tpavi(backbone: str, classes: int) -> dict[str, list[int]]:
    """The tensors of a checkpoint of AVSBench's public code, whose backbones AVSegFormer's code has taken over."""
    prefix = "resnet." if backbone == "resnet50" else "encoder_backbone."
    body = golden("avsegformer")["tensors"][backbone].items()
    found = {prefix + name.removeprefix("backbone."): x for name, x in body if name.startswith("backbone.")}
    found |= golden("tpavi")["tensors"][backbone]
    if classes > 1:  # the code for AVSS
        found |= {"output_conv.4.weight": [classes + 1, 32, 1, 1], "output_conv.4.bias": [classes + 1]}
        found = {name: shape for name, shape in found.items() if not name.endswith("align_channel.bias")}
    return found
