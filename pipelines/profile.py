"""The most expensive operations of a preset's training steps, and their trace; run it in the project's folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pipelines.cli import command_main, preset_parser
from pipelines.console import print_table
from pipelines.cost import FRAMES, random_model
from pipelines.settings import preset_label, preset_settings
from qdformer.config.train import Train
from qdformer.data.dataset import Batch
from qdformer.training.cost import random_clip
from qdformer.training.loop import TrainingState, train_epoch

STEPS = 3
"""Number of steps that are traced; as many before them are not."""
ROWS = 10


def trace(train: Train, path: Path) -> tuple[list[Any], float]:
    """Trace `STEPS` training steps on random clips, write them to `path`, and return the operations and the seconds.

    The operations are those of `torch.profiler`, the one with the longest own time first.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = train.model_copy(update={"epochs": 2})
    model = random_model(recipe).to(device)
    criterion = model.build_criterion(recipe.loss).to(device)
    state = TrainingState(model, recipe, STEPS)
    batches = [random_batch(recipe)] * STEPS
    train_epoch(state, model, criterion, batches, recipe, device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as profiler:
        seconds = (train_epoch(state, model, criterion, batches, recipe, device) or {})["seconds"]
    path.parent.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(path))
    return sorted(profiler.key_averages(), key=own_time, reverse=True), seconds


def own_time(operation: Any) -> float:
    """Microseconds in the operation itself: on the GPU, if there is one, otherwise on the CPU."""
    on_gpu, on_cpu = operation.self_device_time_total, operation.self_cpu_time_total
    return on_gpu if torch.cuda.is_available() else on_cpu


def random_batch(train: Train) -> Batch:
    """A batch of noise with one object in the left half of every frame."""
    frames = train.frames or FRAMES
    images_BTCHW, audio_BTA = (
        tensor.repeat(train.batch_size, *[1] * (tensor.ndim - 1)) for tensor in random_clip(frames, train.image_size)
    )
    labels_BTHW = torch.zeros(images_BTCHW[:, :, 0].shape, dtype=torch.int64)
    labels_BTHW[..., : train.image_size // 2] = 1
    every_BT = torch.ones(labels_BTHW.shape[:2], dtype=torch.bool)
    uids = [f"clip {index}" for index in range(train.batch_size)]
    return Batch(images_BTCHW, audio_BTA, labels_BTHW, every_BT, every_BT, uids)


def show(operations: Iterable[Any], title: str) -> None:
    """Print the `ROWS` operations with the longest own time."""
    operations = list(operations)
    whole = sum(map(own_time, operations))
    rows = [
        [
            operation.key,
            f"{operation.count / STEPS:,.0f}",
            f"{own_time(operation) / 1000 / STEPS:,.1f}",
            f"{100 * own_time(operation) / whole:.1f}",
        ]
        for operation in operations[:ROWS]
    ]
    print_table(title, ["operation", "calls per step", "ms per step", "% of the time"], rows)


def main() -> None:
    arguments = preset_parser(__doc__).parse_args()

    def run() -> None:
        project = Path.cwd()
        train = preset_settings(arguments.data, project).train
        path = project / ".cache" / "profile" / f"{arguments.data or 'default'}.json"
        operations, seconds = trace(train, path)
        show(operations, f"Training steps with the settings of {preset_label(arguments.data, project)}")
        device = "the GPU" if torch.cuda.is_available() else f"the CPU with {torch.get_num_threads()} threads"
        print(
            f"{STEPS} steps of {train.batch_size} clips of {train.frames or FRAMES} frames of {train.image_size} x "
            f"{train.image_size} pixels on {device}: {seconds / STEPS:.2f} s each, with the profiler on.\n"
            "The clips are noise, and the backbone processes every frame (no cached_views).\n"
            f"Trace for https://ui.perfetto.dev or chrome://tracing: {path.relative_to(project)}"
        )

    command_main(run)


if __name__ == "__main__":
    main()
