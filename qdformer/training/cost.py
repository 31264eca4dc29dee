"""Parameters, floating-point operations, time and memory of each part of a model.

Shapes: B clips, T frames, A audio features, H W pixels.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qdformer.utils.constants import EMBEDDING_SIZE

if TYPE_CHECKING:
    from qdformer.config.base import Section
    from qdformer.models import Method

REST = "the rest"
"""Operations and parameters of the model itself, outside its child modules."""


@dataclass(frozen=True)
class Part:
    """The cost of one part of a model in one forward pass of one clip."""

    name: str
    parameters: int
    trained: int
    """Number of parameters that are not frozen."""
    flops: int
    """Matrix products and convolutions only; a multiplication and an addition count as two operations."""
    seconds: float


@dataclass(frozen=True)
class Memory:
    """Peak resident memory of the whole process, in bytes."""

    before: int
    forward: int
    training_step: int


def summarize(model: Method, images_BTCHW: torch.Tensor, audio_BTA: torch.Tensor, repeats: int = 3) -> list[Part]:
    """The cost of each child module in order, then of `REST`; seconds are medians over `repeats` passes.

    The outermost calls of a child's submodules are counted, so that methods other than its `forward` are included.
    """
    model.eval()
    # Gradients and the math backend are needed because the counter does not know the CPU's fused attention kernels.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        flops = _costs(model, lambda: model(images_BTCHW, audio_BTA), counter.get_total_flops)
    seconds: dict[str, list[float]] = defaultdict(list)
    with torch.no_grad():
        for repeat in range(repeats + 1):
            for name, value in _costs(model, lambda: model(images_BTCHW, audio_BTA), time.perf_counter).items():
                if repeat:  # the first pass warms up
                    seconds[name].append(value)
    held: dict[str, list[nn.Parameter]] = {name: [] for name in flops}
    for name, parameter in model.named_parameters():
        part = name.partition(".")[0]
        held[part if part in held else REST].append(parameter)
    return [
        Part(
            name,
            sum(p.numel() for p in parameters),
            sum(p.numel() for p in parameters if p.requires_grad),
            int(flops[name]),
            statistics.median(seconds[name]),
        )
        for name, parameters in held.items()
    ]


def peak_memory(model: Method, loss: Section, images_BTCHW: torch.Tensor, audio_BTA: torch.Tensor) -> Memory:
    """Peak memory of a forward pass and of a training step (forward, loss, backward, AdamW), as Linux reports it."""

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(images_BTCHW, audio_BTA)

    def training_step() -> None:
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        every_frame_BT = torch.ones(images_BTCHW.shape[:2], dtype=torch.bool)
        labels_BTHW = torch.zeros(*images_BTCHW.shape[:2], *images_BTCHW.shape[-2:], dtype=torch.int64)
        labels_BTHW[..., : labels_BTHW.shape[-1] // 2] = 1  # one object in the left half
        output = model(images_BTCHW, audio_BTA)
        model.build_criterion(loss)(output, labels_BTHW, every_frame_BT, every_frame_BT)["total"].backward()
        optimizer.step()

    def peak(run: Callable[[], object]) -> int:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        run()
        return next(
            int(line.split()[1]) * 1024
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )

    return Memory(peak(lambda: None), peak(forward), peak(training_step))


def random_clip(frames: int, image_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images [1, T, 3, H, W] and audio [1, T, A] of noise."""
    generator = torch.Generator().manual_seed(0)
    images_BTCHW = torch.randint(0, 256, (1, frames, 3, image_size, image_size), generator=generator).to(torch.uint8)
    return images_BTCHW, torch.rand(1, frames, EMBEDDING_SIZE, generator=generator)


def _costs(model: nn.Module, run: Callable[[], object], meter: Callable[[], float]) -> dict[str, float]:
    """Increase of `meter` during `run` in each child module, and outside all of them (`REST`)."""
    costs = {name: 0.0 for name, _ in model.named_children()}
    with _metered(model, costs, meter):
        start = meter()
        run()
        whole = meter() - start
    return costs | {REST: max(whole - sum(costs.values()), 0.0)}


@contextmanager
def _metered(model: nn.Module, costs: dict[str, float], meter: Callable[[], float]) -> Iterator[None]:
    hooks = []
    open_calls: list[float] = []  # the meter at the start of each call that has not ended

    def enter(*_: object) -> None:
        open_calls.append(meter())

    for name, child in model.named_children():

        def leave(*_: object, name: str = name) -> None:
            start = open_calls.pop()
            if not open_calls:
                costs[name] += meter() - start

        for module in child.modules():
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
