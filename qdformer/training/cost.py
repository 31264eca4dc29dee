"""What a model costs, part by part: parameters, floating-point operations, time and memory.

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

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qdformer.config.train import Loss
from qdformer.models.qdformer.criterion import Criterion
from qdformer.models.qdformer.model import QDFormer
from qdformer.utils.constants import EMBEDDING_SIZE

REST = "the rest"
"""What the model does and holds outside its parts."""


@dataclass(frozen=True)
class Part:
    """One part of the model, in one forward pass of one clip."""

    name: str
    parameters: int
    trained: int
    """Parameters that are not frozen."""
    flops: int
    """Of matrix products and convolutions, a multiplication and an addition being two."""
    seconds: float


@dataclass(frozen=True)
class Memory:
    """The highest resident memory of the whole process, in bytes."""

    before: int
    forward: int
    training_step: int


def summarize(model: QDFormer, images_BTCHW: torch.Tensor, audio_BTA: torch.Tensor, repeats: int = 3) -> list[Part]:
    """The children of the model in their order, then `REST`; seconds are medians over `repeats` passes.

    A part's costs are those of the outermost calls of its modules, so that what is called past its `forward` counts.
    """
    model.eval()
    # With gradients, and attention as matrix products: the counter does not know the fused kernels of the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        flops = _costs(model, lambda: model(images_BTCHW, audio_BTA), counter.get_total_flops)
    seconds: dict[str, list[float]] = defaultdict(list)
    with torch.no_grad():
        for repeat in range(repeats + 1):
            for name, value in _costs(model, lambda: model(images_BTCHW, audio_BTA), time.perf_counter).items():
                if repeat:  # the first pass is slower: it finds memory and kernels
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


def peak_memory(model: QDFormer, loss: Loss, images_BTCHW: torch.Tensor, audio_BTA: torch.Tensor) -> Memory:
    """The peaks of a forward pass and of a training step (forward, loss, backward, AdamW), by Linux's own count."""

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            model(images_BTCHW, audio_BTA)

    def training_step() -> None:
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        everywhere_BT = torch.ones(images_BTCHW.shape[:2], dtype=torch.bool)
        labels_BTHW = torch.zeros(*images_BTCHW.shape[:2], *images_BTCHW.shape[-2:], dtype=torch.int64)
        labels_BTHW[..., : labels_BTHW.shape[-1] // 2] = 1  # a thing in the left half
        output = model(images_BTCHW, audio_BTA)
        Criterion(loss, model.num_classes)(output, labels_BTHW, everywhere_BT, everywhere_BT)["total"].backward()
        optimizer.step()

    def peak(run: Callable[[], object]) -> int:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest mark so far
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
    """How far `meter` went during `run` in each child, and in none (`REST`)."""
    costs = {name: 0.0 for name, _ in model.named_children()}
    with _metered(model, costs, meter):
        begun = meter()
        run()
        whole = meter() - begun
    return costs | {REST: max(whole - sum(costs.values()), 0.0)}


@contextmanager
def _metered(model: nn.Module, costs: dict[str, float], meter: Callable[[], float]) -> Iterator[None]:
    hooks = []
    inside: list[float] = []  # what the meter said when each call began that has not ended

    def enter(*_: object) -> None:
        inside.append(meter())

    for name, child in model.named_children():

        def leave(*_: object, name: str = name) -> None:
            begun = inside.pop()
            if not inside:
                costs[name] += meter() - begun

        for module in child.modules():
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
