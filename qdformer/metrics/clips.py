"""The base of all accumulators, which keep a small record for each clip, and the checks of metric inputs."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from copy import copy
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import distributed

from qdformer.utils.errors import InputError


class MetricError(InputError):
    """Prediction and target cannot be compared; the message names the shape or values that were expected."""


class ClipAccumulator:
    """Keeps a few kilobytes of numbers per clip, ordered by the index of the clip in the test set.

    The order matters because AVSBench's F is computed over batches of consecutive clips. Each process of a distributed
    evaluation therefore passes the indices of its clips, and after `sync` every process computes the metrics of a
    single pass over all clips.

    The numbers of all clips share one growing block: many small allocations between the large temporary arrays of an
    update would keep the allocator from returning memory to the system.
    """

    _KEPT: tuple[str, ...] = ("_indices", "_numbers")

    def __init__(self, width: int) -> None:
        self._width = width
        self._indices, self._numbers = array("q"), array("d")

    def __len__(self) -> int:
        return len(set(self._indices))

    @property
    def all_indices(self) -> np.ndarray:
        """The resample that contains every clip once: int64 [1, clips]."""
        return np.arange(len(self))[None]

    def merge(self, other: Self) -> None:
        """Add the clips of another accumulator. A clip that is in both counts once."""
        self._extend([{name: getattr(other, name) for name in self._KEPT}])

    def sync(self) -> None:
        """Merge the clips of all processes of the default group of `torch.distributed`, if there is one."""
        parts = all_gather({name: getattr(self, name) for name in self._KEPT})
        for name in self._KEPT:
            setattr(self, name, array(getattr(self, name).typecode))
        self._extend(parts)

    def subset(self, indices: np.ndarray) -> Self:
        """A new accumulator that holds only the clips at `indices`."""
        part = copy(self)
        part._indices = array("q", np.unique(self._indices)[indices].tolist())
        part._numbers = array("d", self._records()[indices].tobytes())
        return part

    def _add(self, record: Iterable[float], index: int | None) -> int:
        index = max(self._indices, default=-1) + 1 if index is None else index
        self._indices.append(index)
        self._numbers.extend(record)
        return index

    def _extend(self, parts: Iterable[Mapping[str, array]]) -> None:
        for part in parts:
            for name, kept in part.items():
                getattr(self, name).extend(kept)

    def _records(self) -> np.ndarray:
        """The numbers of every clip: float64 [clips, width]."""
        _, first = np.unique(self._indices, return_index=True)
        return np.array(self._numbers).reshape(-1, self._width)[first]


def all_gather(value: Any) -> list[Any]:
    """The `value` of each process of the default group of `torch.distributed`, by rank; without a group, [value]."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def gather_by_index(records: dict[int, Any]) -> dict[int, Any]:
    """The records of all processes, in the order of their indices."""
    joined = {index: record for part in all_gather(records) for index, record in part.items()}
    return {index: joined[index] for index in sorted(joined)}


def check_same_shape(dimensions: str, **values: ArrayLike | torch.Tensor) -> list[np.ndarray]:
    """Convert tensors or array-likes to NumPy arrays of one common shape with these `dimensions` ("N H W").

    Raises `MetricError` if the shapes differ, have other dimensions or contain a 0, or if a value is not a number.
    """
    arrays = {name: _to_numpy(name, value) for name, value in values.items()}
    expected = f"[{dimensions.replace(' ', ', ')}]"
    shapes = [list(numbers.shape) for numbers in arrays.values()]
    first = shapes[0]
    if len(first) != len(dimensions.split()) or 0 in first or any(shape != first for shape in shapes):
        given = ", ".join(f"{name} {shape}" for name, shape in zip(arrays, shapes, strict=True))
        raise MetricError(f"{given}: expected {expected}, equal shapes without a dimension of size 0")
    for name, numbers in arrays.items():
        if numbers.dtype.kind == "f" and np.isnan(numbers).any():
            raise MetricError(f"{name} contains NaN; expected numbers")
    return list(arrays.values())


def _to_numpy(name: str, values: ArrayLike | torch.Tensor) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # NumPy has no such type
            values = values.float()
        return values.numpy()
    try:
        numbers = np.asarray(values)
    except ValueError as error:
        raise MetricError(f"{name} is not an array: {error}") from None
    if numbers.dtype.kind not in "biuf":
        raise MetricError(f"{name} is of type {numbers.dtype}; expected a tensor or an array of numbers")
    return numbers


def as_mask(name: str, values: np.ndarray) -> np.ndarray:
    """Convert a mask given as bool, or as 0 and 1 of any type, to bool; `MetricError` for any other value."""
    if values.dtype != bool and not ((values == 0) | (values == 1)).all():
        raise MetricError(f"{name} contains {values.min()} to {values.max()}; expected a mask of 0 and 1")
    return values.astype(bool, copy=False)
