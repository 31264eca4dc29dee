"""What the accumulators have in common: a small record of every clip, by the clip's index in the test set."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from torch import distributed

from qdformer.utils.errors import InputError


class MetricError(InputError):
    """Predictions and truth cannot be compared; the message says which shape or value was expected."""


class ClipAccumulator:
    """A few kilobytes of numbers for each clip and no pixels, in the order of the clips' places.

    The order decides AVSBench's F, which is taken over a few clips at a time. So each process of a distributed
    evaluation says where its clips stand, and after `sync` all of them have the figures of a single pass.

    The numbers of all clips lie in one block that grows: small pieces between the large ones that scoring takes and
    frees would keep those from going back to the system.
    """

    _KEPT: tuple[str, ...] = ("_indices", "_numbers")

    def __init__(self, width: int) -> None:
        self._width = width
        self._indices, self._numbers = array("q"), array("d")

    def __len__(self) -> int:
        return len(set(self._indices))

    @property
    def all_indices(self) -> np.ndarray:
        """The one row of indices that draws every clip once: int64 [1, clips]."""
        return np.arange(len(self))[None]

    def merge(self, other: Self) -> None:
        """Take in the clips of another accumulator; a clip that both have measured counts once."""
        self._take([{name: getattr(other, name) for name in self._KEPT}])

    def sync(self) -> None:
        """Take in the clips of all processes of the default group of `torch.distributed`, where there is one."""
        parts = all_gather({name: getattr(self, name) for name in self._KEPT})
        for name in self._KEPT:
            setattr(self, name, array(getattr(self, name).typecode))
        self._take(parts)

    def subset(self, indices: np.ndarray) -> Self:
        """An accumulator of the clips at `indices` alone."""
        part = copy(self)
        part._indices = array("q", np.unique(self._indices)[indices].tolist())
        part._numbers = array("d", self._records()[indices].tobytes())
        return part

    def _add(self, record: Iterable[float], index: int | None) -> int:
        index = max(self._indices, default=-1) + 1 if index is None else index
        self._indices.append(index)
        self._numbers.extend(record)
        return index

    def _take(self, parts: Iterable[Mapping[str, array]]) -> None:
        for part in parts:
            for name, kept in part.items():
                getattr(self, name).extend(kept)

    def _records(self) -> np.ndarray:
        """The numbers of every clip: float64 [clips, width]."""
        _, first = np.unique(self._indices, return_index=True)
        return np.array(self._numbers).reshape(-1, self._width)[first]


def all_gather(kept: Any) -> list[Any]:
    """What all processes of the default group of `torch.distributed` keep, by rank; alone, one's own."""
    parts = [kept]
    if distributed.is_available() and distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, kept)
    return parts


def gather_by_index(kept: dict[int, Any]) -> dict[int, Any]:
    """What all processes keep by index, in the order of the places."""
    joined = {index: record for part in all_gather(kept) for index, record in part.items()}
    return {index: joined[index] for index in sorted(joined)}


def check_same_shape(dimensions: str, **tensors: torch.Tensor) -> list[np.ndarray]:
    """The tensors as arrays, if all are of one shape, which has these `dimensions` ("N H W"), and hold no NaN."""
    expected = f"[{dimensions.replace(' ', ', ')}]"
    shapes = {name: list(values.shape) for name, values in tensors.items()}
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    first = next(iter(shapes.values()))
    if len(first) != len(dimensions.split()) or 0 in first or any(shape != first for shape in shapes.values()):
        raise MetricError(f"{told}: expected {expected}, the same for all and none of them 0")
    for name, values in tensors.items():
        if values.is_floating_point() and values.isnan().any():
            raise MetricError(f"{name} holds NaN; expected numbers")
    return [values.detach().cpu().numpy() for values in tensors.values()]


def as_mask(name: str, values: np.ndarray) -> np.ndarray:
    """A mask given as bool, or as 0 and 1 of any type, as bool."""
    if values.dtype != bool and not ((values == 0) | (values == 1)).all():
        raise MetricError(f"{name} holds {values.min()} to {values.max()}; expected a mask of 0 and 1")
    return values.astype(bool, copy=False)
