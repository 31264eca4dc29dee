"""Parameters, FLOPs, time and memory of each part of a preset's model; run it in the project's folder."""

from __future__ import annotations

import sys
from dataclasses import astuple, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from pipelines.cli import command_main, preset_parser
from pipelines.settings import preset_label, preset_settings
from qdformer.config.train import Train
from qdformer.models import Method
from qdformer.models.registry import build_model
from qdformer.training.cost import Memory, Part, peak_memory, random_clip, summarize

FRAMES = 5
CLASSES = {"avs": 1, "avss": 70}
"""The number of classes of AVSBench by task."""


@dataclass(frozen=True)
class Cost:
    """What one clip of `FRAMES` frames costs."""

    parts: list[Part]
    memory: Memory

    @property
    def whole(self) -> Part:
        return Part("all", *(sum(column) for column in list(zip(*map(astuple, self.parts), strict=True))[1:]))


def random_model(train: Train) -> Method:
    """The model of these settings with random weights, of which the same are trained as with pretrained ones."""
    settings = train.model
    torch.manual_seed(0)
    model = build_model(settings.without_weights(), CLASSES[train.task])
    if settings.backbone_weights is not None and settings.frozen_stages:
        model.backbone.freeze(settings.frozen_stages)
    return model


def measure(train: Train) -> Cost:
    """The cost of the model of these settings, with random weights.

    The memory is that of the process, which should have done nothing else before.
    """
    model = random_model(train)
    clip = random_clip(FRAMES, train.image_size)
    memory = peak_memory(model, train.loss, *clip)  # first, because a process may keep memory that it once had
    return Cost(summarize(model, *clip), memory)


def show(train: Train, title: str) -> None:
    """Print the table of parts and the peak memory for one clip of `FRAMES` frames."""
    cost = measure(train)
    settings, parts, whole, memory = train.model, cost.parts, cost.whole, cost.memory
    table = Table(title=title, title_justify="left")
    table.add_column("part", no_wrap=True)
    for column in ("parameters", "trained", "GFLOP", "% of GFLOP", "ms", "% of ms"):
        table.add_column(column, justify="right", no_wrap=True)
    for part in [*parts, whole]:
        table.add_row(
            part.name,
            f"{part.parameters:,}",
            f"{part.trained:,}",
            f"{part.flops / 1e9:,.2f}",
            f"{part.flops / whole.flops:.1%}".rstrip("%"),
            f"{1000 * part.seconds:,.0f}",
            f"{part.seconds / whole.seconds:.1%}".rstrip("%"),
            end_section=part is parts[-1],
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    side = train.image_size
    print(
        f"Backbone {settings.backbone}. {settings.summary}. "
        f"Task {train.task} with {CLASSES[train.task]} classes.\n"
        f"One forward pass of one clip: {FRAMES} frames of {side} x {side} pixels, float32, on the CPU with "
        f"{torch.get_num_threads()} threads; medians of 3.\n"
        "GFLOP: matrix products and convolutions; a multiply-add counts as two.\n"
        "The weights are random; no number here depends on them.\n"
        f"Peak memory of the process: {memory.forward / 1e9:.2f} GB in a forward pass, "
        f"{memory.training_step / 1e9:.2f} GB in a training step; {memory.before / 1e9:.2f} GB before."
    )


def main() -> None:
    """The command `qdformer-cost`."""
    arguments = preset_parser(__doc__).parse_args()

    def run() -> None:
        project = Path.cwd()
        train = preset_settings(arguments.data, project).train
        show(train, f"{train.model.title} with the settings of {preset_label(arguments.data, project)}")

    command_main(run)


if __name__ == "__main__":
    main()
