"""Time and memory of QDFormer compared with its ResNet-50 backbone alone: one clip of 5 frames at 224 x 224 pixels.

`paper` is the preset avss, `light` the preset avss-light, both with random weights. The backbone alone is transformers'
ResNet-50 in evaluation mode. Times are medians over rounds; in each round all models are measured in turn. Peak memory
is measured in a separate process per model.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import qdformer  # noqa: F401  (lets transformers be imported)
from pipelines.settings import preset_settings
from qdformer.models import QDFormer
from qdformer.models.qdformer.criterion import Criterion

CLASSES, FRAMES, SIZE, THREADS = 70, 5, 224, 2
ROUNDS, STEPS = 7, 5
PRESETS = {"paper": "avss", "light": "avss-light"}
GOALS = {
    "paper": {"inference": 4.0, "training step": 4.0},
    "light": {"inference": 1.7, "training step": 2.0},
}
OWN_GOAL, LINEAR_GOAL, LOSS_GOAL, MEMORY_GOAL = 1.3, 2.1, 0.10, 2.5


def run() -> None:
    """Measure, and print the tables."""
    torch.set_num_threads(THREADS)
    models = {name: build(name) for name in GOALS}
    alone = plain_backbone()
    inference = {"backbone": Inference(alone)}
    for name, model in models.items():
        inference |= {name: Inference(model), f"{name}, {2 * FRAMES} frames": Inference(model, 2 * FRAMES)}
    seconds = in_turns(inference, ROUNDS, "inference")
    steps = {"backbone": BackboneStep(alone), **{name: TrainingStep(model) for name, model in models.items()}}
    training = in_turns(steps, STEPS, "training steps")

    table = Table("", "seconds", "/ backbone", "goal", "/ own operations", "goal", title=TITLE)
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    operations = {name: floating_point_operations(task.model) for name, task in inference.items() if "," not in name}
    for what, times in (("inference", seconds), ("training step", training)):
        table.add_row(f"{what}, backbone", f"{times['backbone']:.2f}")
        for name in models:
            ratio = times[name] / times["backbone"]
            # Time relative to the number of operations; a training step has three times the operations of inference.
            own = ratio / (operations[name] / operations["backbone"])
            table.add_row(
                f"{what}, {name}", f"{times[name]:.2f}", *_judged(ratio, GOALS[name][what]), *_judged(own, OWN_GOAL)
            )
    console = Console()
    console.print(table)

    more = Table("", *models, "goal", title="Growth, loss and memory")
    for column in more.columns[1:]:
        column.justify = "right"
    growth = [seconds[f"{name}, {2 * FRAMES} frames"] / seconds[name] for name in models]
    more.add_row("10 frames / 5 frames", *[_judged(value, LINEAR_GOAL)[0] for value in growth], f"≤ {LINEAR_GOAL}")
    shares = [steps[name].loss_share for name in models]
    more.add_row(
        "matching and loss / step", *[_judged(value, LOSS_GOAL, "{:.1%}")[0] for value in shares], f"≤ {LOSS_GOAL:.0%}"
    )
    peaks = [peak_memory(name) for name in models]
    more.add_row("peak memory of a step, GB", *[_judged(value, MEMORY_GOAL)[0] for value in peaks], f"≤ {MEMORY_GOAL}")
    console.print(more)


TITLE = f"One clip of {FRAMES} frames, {SIZE} x {SIZE}, {THREADS} threads, single precision"


def build(name: str) -> QDFormer:
    settings = preset_settings(PRESETS[name]).train.model
    torch.manual_seed(0)
    return QDFormer(settings.model_copy(update={"backbone_weights": None}), CLASSES)


def plain_backbone() -> nn.Module:
    """transformers' ResNet-50 with four feature maps, in the faster memory layout."""
    from transformers import ResNetBackbone, ResNetConfig

    stages = ["stage1", "stage2", "stage3", "stage4"]
    return ResNetBackbone(ResNetConfig(out_features=stages)).eval().to(memory_format=torch.channels_last)


class Inference:
    """A forward pass for one clip; for QDFormer, the whole of `predict`."""

    def __init__(self, model: nn.Module, frames: int = FRAMES) -> None:
        self.model = model
        self.images, self.audio, *_ = clip(frames)

    @torch.inference_mode()
    def __call__(self) -> None:
        self.model.eval()
        if isinstance(self.model, QDFormer):
            self.model.predict(self.images, self.audio)
        else:
            self.model(normalized(self.images[0]))


class BackboneStep:
    """Forward and backward pass of the backbone alone, with batch normalization in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.images = model, clip(FRAMES)[0]

    def __call__(self) -> None:
        maps = self.model(normalized(self.images[0])).feature_maps
        sum(features.mean() for features in maps).backward()
        self.model.zero_grad(set_to_none=True)


class TrainingStep:
    """Forward pass, loss, backward pass, gradient clipping and optimizer; records the time share of the loss."""

    def __init__(self, model: QDFormer) -> None:
        recipe = preset_settings("avss").train
        self.model = model
        self.criterion = Criterion(recipe.loss, CLASSES)
        groups = model.parameter_groups(recipe.learning_rate, recipe.backbone_lr_mult, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=True)
        self.images, self.audio, self.labels, self.every_frame = clip(FRAMES)
        self.shares: list[float] = []

    @property
    def loss_share(self) -> float:
        return median(self.shares)

    def __call__(self) -> None:
        self.model.train()
        started = time.perf_counter()
        output = self.model(self.images, self.audio)
        forward = time.perf_counter()
        predictions = [
            getattr(layer, name)
            for layer in (output, *output.auxiliary)
            for name in ("class_logits_BTNC", "boxes_BTN4", "mask_logits_BTNHW")
        ]
        total = self.criterion(output, self.labels, self.every_frame, self.every_frame)["total"]
        torch.autograd.grad(total, predictions, retain_graph=True)
        loss = time.perf_counter()
        total.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        # The backward pass of the loss runs twice, once of them only for this measurement.
        self.shares.append((loss - forward) / (time.perf_counter() - started))


def clip(frames: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, audio, labels of three classes, and a mask that marks every frame as valid and labeled."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, frames, 3, SIZE, SIZE), generator=generator).to(torch.uint8)
    labels = torch.zeros(1, frames, SIZE, SIZE, dtype=torch.int64)
    labels[:, :3, 40:120, 50:140], labels[:, 1:, 150:200, 20:100], labels[:, ::2, 20:60, 160:210] = 3, 9, 40
    return images, torch.rand(1, frames, 128, generator=generator), labels, torch.ones(1, frames, dtype=torch.bool)


def normalized(images: torch.Tensor) -> torch.Tensor:
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def in_turns(tasks: dict[str, Callable[[], None]], rounds: int, title: str) -> dict[str, float]:
    """Median seconds of each task; the first round is a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in tqdm(range(rounds + 1), desc=title, leave=False):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in times.items()}


def floating_point_operations(model: nn.Module) -> int:
    """Number of operations of the forward pass for one clip."""
    counter = FlopCounterMode(display=False)
    model.eval()
    with counter:
        if isinstance(model, QDFormer):
            model(*clip(FRAMES)[:2])
        else:
            model(normalized(clip(FRAMES)[0][0]))
    return counter.get_total_flops()


@functools.cache
def peak_memory(name: str) -> float:
    """Peak memory in gigabytes of a whole process that runs training steps of the model."""
    process = subprocess.run(
        [sys.executable, __file__, name], check=True, capture_output=True, text=True, cwd=Path.cwd()
    )
    return float(process.stdout.split()[-1])


def _judged(value: float, goal: float, form: str = "{:.2f}") -> tuple[str, str]:
    color = "green" if value <= goal else "red"
    return f"[{color}]{form.format(value)}[/]", f"≤ {goal}"


if __name__ == "__main__":
    torch.set_num_threads(THREADS)
    step = TrainingStep(build(sys.argv[1]))
    for _ in range(3):
        step()
    # `getrusage` is not used because its peak includes the parent process.
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(int(line.split()[1]) / 1024**2)
