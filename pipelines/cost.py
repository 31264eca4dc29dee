"""What the model of a preset costs: `python -m pipelines.cost [--preset NAME]`, in the project's folder."""

from __future__ import annotations

import argparse
import sys
from dataclasses import astuple
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from qdformer.config.presets import preset_values
from qdformer.config.settings import parse_settings
from qdformer.config.train import Train
from qdformer.models.qdformer.model import QDFormer
from qdformer.training.cost import Part, peak_memory, random_clip, summarize
from qdformer.utils.errors import InputError

BAD_SETTINGS = 2
FRAMES = 5
CLASSES = {"avs": 1, "avss": 70}  # as AVSBench has them


def show(train: Train, title: str) -> None:
    """Print the table and the memory of one clip of `FRAMES` frames."""
    settings, classes = train.model, CLASSES[train.task]
    torch.manual_seed(0)
    model = QDFormer(settings.model_copy(update={"backbone_weights": None}), classes)
    if settings.backbone_weights is not None and settings.frozen_stages:
        model.backbone.freeze(settings.frozen_stages)  # as pretrained weights would be
    clip = random_clip(FRAMES, train.image_size)
    memory = peak_memory(model, train.loss, *clip)  # first: what a process once held it may keep
    parts = summarize(model, *clip)
    whole = Part("all", *(sum(column) for column in list(zip(*map(astuple, parts), strict=True))[1:]))

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
        f"Backbone {settings.backbone}, {settings.encoder} encoder, hidden_dim {settings.hidden_dim}; "
        f"task {train.task} with {classes} classes.\n"
        f"One forward pass of one clip: {FRAMES} frames of {side} x {side} pixels, float32, on the CPU with "
        f"{torch.get_num_threads()} threads; medians of 3.\n"
        "GFLOP: matrix products and convolutions, a multiply-add being two.\n"
        "Weights are drawn at random: no figure here depends on them.\n"
        f"Peak memory of the process: {memory.forward / 1e9:.2f} GB in a forward pass, "
        f"{memory.training_step / 1e9:.2f} GB in a training step; {memory.before / 1e9:.2f} GB before."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m pipelines.cost", description=__doc__)
    parser.add_argument("--preset", default="", help="of pipelines/presets/ (default: params.yaml as it is)")
    name = parser.parse_args().preset
    try:
        settings = parse_settings(preset_values(name, Path.cwd()))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_SETTINGS)
    show(settings.train, f"QDFormer of {'preset ' + name if name else 'params.yaml'}")
