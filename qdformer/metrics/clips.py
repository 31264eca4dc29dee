"""What the accumulators have in common: a small record of every clip, by the clip's place in the test set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from torch import distributed

from qdformer.errors import InputError


class MetricError(InputError):
    """Predictions and truth cannot be compared; the message says which shape or value was expected."""


class ClipScores:
    """A few kilobytes for each clip and no pixels, in the order of the clips' places.

    The order decides AVSBench's F, which is taken over a few clips at a time. So each process of a distributed
    evaluation says where its clips stand, and after `gather` all of them have the figures of a single pass.
    """

    def __init__(self) -> None:
        self._clips: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._clips)

    @property
    def everything(self) -> np.ndarray:
        """The one row of indices that draws every clip once: int64 [1, clips]."""
        return np.arange(len(self))[None]

    def merge(self, other: Self) -> None:
        """Take in the clips of another accumulator; a clip that both have measured counts once."""
        self._clips |= other._clips

    def gather(self) -> None:
        """Take in the clips of all processes of the default group of `torch.distributed`, where there is one."""
        self._clips = gather(self._clips)

    def subset(self, indices: Iterable[int]) -> Self:
        """An accumulator of the clips at `indices` alone."""
        part, places = type(self).__new__(type(self)), sorted(self._clips)
        part.__dict__ |= self.__dict__ | {"_clips": {places[index]: self._clips[places[index]] for index in indices}}
        return part

    def _add(self, record: Any, place: int | None) -> None:
        self._clips[max(self._clips, default=-1) + 1 if place is None else place] = record

    def _records(self) -> list[Any]:
        return [self._clips[place] for place in sorted(self._clips)]


def gather(kept: dict[int, Any]) -> dict[int, Any]:
    """What all processes of `torch.distributed` keep by place, in the order of the places; alone, one's own."""
    parts = [kept]
    if distributed.is_available() and distributed.is_initialized():
        parts = [None] * distributed.get_world_size()
        distributed.all_gather_object(parts, kept)
    joined = {place: record for part in parts for place, record in part.items()}
    return dict(sorted(joined.items()))


def alike(dimensions: str, **tensors: torch.Tensor) -> list[np.ndarray]:
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


def binary(name: str, values: np.ndarray) -> np.ndarray:
    """A mask given as bool, or as 0 and 1 of any type, as bool."""
    if values.dtype != bool and not ((values == 0) | (values == 1)).all():
        raise MetricError(f"{name} holds {values.min()} to {values.max()}; expected a mask of 0 and 1")
    return values.astype(bool, copy=False)
