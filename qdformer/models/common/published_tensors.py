"""The tensors of a checkpoint of another public code, under the names of this project's model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from qdformer.models.backbones.weights import BackboneError, Weights

if TYPE_CHECKING:
    import torch

    from qdformer.models.common.method import Method


Renaming = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern in the names of the authors' code, and what it becomes here."""


class Tensor(NamedTuple):
    """A tensor of a checkpoint and its name there."""

    published_name: str
    value: torch.Tensor


def rename(name: str, renamings: Iterable[Renaming]) -> str:
    """The name of a tensor after all renamings, in their order."""
    for pattern, new in renamings:
        name = re.sub(pattern, new, name)
    return name


def load_tensors(model: Method, tensors: Mapping[str, Tensor], weights: Weights, title: str) -> None:
    """Give all parts of `model` but the backbone the values of `tensors`, by the names of `model`.

    Raises `BackboneError`, which names the file and the tensor, if one is missing, has another shape, or belongs to no
    part of the model.
    """
    expected = {name: x.shape for name, x in model.state_dict().items() if not name.startswith("backbone.")}
    for name, shape in expected.items():
        found = tensors.get(name)
        if found is None or found.value.shape != shape:
            key = found.published_name if found else f"for {name}"
            raise weights.mismatch(key, shape, found.value.shape if found else None)
    for name, tensor in tensors.items():
        if name not in expected:
            raise BackboneError(
                f"{weights.path}: key {tensor.published_name} is of another network; no part of {title}"
            )
    model.load_state_dict({name: tensor.value for name, tensor in tensors.items()}, strict=False)
