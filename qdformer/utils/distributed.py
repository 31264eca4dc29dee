"""The processes of a distributed training ("ranks"), which together process one global batch in each step.

Rank r of W has the clips r, r + W, r + 2 W .. of the global batch (`qdformer.data.dataset.EpochSampler`). All functions
also work in a single process. With several ranks, all of them must call the functions
in the same order.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import distributed
from torch.nn import functional

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return world_size() > 1


def world_size() -> int:
    """Number of ranks."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Index of this rank."""
    return distributed.get_rank() if is_distributed() else 0


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's `values`, without a gradient."""
    if not is_distributed():
        return values.detach()
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total


def differentiable_sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's `values`; its gradient is the sum of the gradients of all ranks."""
    return _Sum.apply(values) if is_distributed() else values


def differentiable_gather(rows: torch.Tensor) -> torch.Tensor:
    """The rows [N, D] of all ranks, which may have different numbers of them, in the order of the ranks.

    Their gradient is the sum of the gradients of all ranks.
    """
    counts = all_ranks(len(rows))
    before = sum(counts[: rank()])
    after = sum(counts) - before - len(rows)
    return differentiable_sum_over_ranks(functional.pad(rows, (0, 0, before, after)))


def from_first_rank(value: Value) -> Value:
    """Rank 0's `value`, which may be any object that can be pickled."""
    if not is_distributed():
        return value
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def all_ranks(value: Value) -> list[Value]:
    """Every rank's `value`, which may be any object that can be pickled."""
    if not is_distributed():
        return [value]
    values: list[Value] = [value] * world_size()
    distributed.all_gather_object(values, value)
    return values


def gather_clips(own: list[torch.Tensor]) -> list[torch.Tensor]:
    """The rows of all ranks in the order of the global batches, for tensors with one row per clip of a batch.

    `own` holds this rank's part of each of several batches. The result is on the CPU.
    """
    own = [tensor.cpu() for tensor in own]
    if not is_distributed():
        return own
    return [_interleave(batch) for batch in zip(*all_ranks(own), strict=True)]


def own_clips(rows: torch.Tensor) -> torch.Tensor:
    """This rank's rows of a tensor with one row per clip of a global batch."""
    return rows[rank() :: world_size()]


def _interleave(parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    whole = torch.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for offset, part in enumerate(parts):
        whole[offset :: len(parts)] = part
    return whole


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(_context: object, values: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(values)

    @staticmethod
    def backward(_context: object, gradient: torch.Tensor) -> torch.Tensor:
        return sum_over_ranks(gradient.contiguous())
