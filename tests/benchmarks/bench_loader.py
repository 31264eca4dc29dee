"""Throughput of `build_loader` from disk to batches, compared with the consumption of a training step.

It uses the clips that the stage download has written to `data/dataset` (or below the folder QDFORMER_BENCH_DATA), the
settings of `params.yaml`, and zeros as features, which are read from memory. The training step runs on the same
machine while the processes of the loader are idle. Every value is the median over interleaved rounds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import numpy as np
import pandas
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from qdformer.config.settings import load_settings
from qdformer.config.train import Train
from qdformer.data.dataset import AVSDataset, Batch, build_loader
from qdformer.data.manifest import read_classes, read_manifest, task_classes
from qdformer.evaluation.controls import Constant
from qdformer.models.qdformer.model import QDFormer
from qdformer.training.loop import TrainingState, train_epoch

ROUNDS, BATCHES, STEPS = 3, 40, 6
WORKERS = (0, 2)
GOAL = 3.0


def run() -> None:
    """Measure, and print the table."""
    recipe = load_settings().train
    root = Path(os.environ.get("QDFORMER_BENCH_DATA", "data")) / "dataset"
    manifest = read_manifest(root)
    clips = manifest[manifest["split"] == "train"].head(BATCHES * recipe.batch_size)
    features = Constant(np.zeros(128, np.float32), dict(zip(clips["uid"], clips["frames"], strict=True)))
    rates: dict[object, list[float]] = {name: [] for name in (*WORKERS, "step")}
    step = _trainer(recipe, root, clips, features)
    loaders = {workers: _loader(recipe, clips, features, workers) for workers in WORKERS}
    for _ in tqdm(range(ROUNDS), desc="rounds", leave=False):
        for workers, loader in loaders.items():
            rates[workers].append(_rate(loader))
        rates["step"].append(step())
    _report({name: median(values) for name, values in rates.items()}, recipe, len(clips))


def _loader(recipe: Train, clips: pandas.DataFrame, features: Mapping, workers: int) -> torch.utils.data.DataLoader:
    data = AVSDataset(
        clips, features, recipe.image_size, recipe.augment, recipe.seed, resize=recipe.resize, task=recipe.task
    )
    loader = build_loader(data, recipe.batch_size, shuffle=True, workers=workers)
    for _ in loader:  # starts the workers and warms up the file cache
        pass
    return loader


def _rate(loader: torch.utils.data.DataLoader) -> float:
    started = time.perf_counter()
    batches = sum(1 for _ in loader)
    return batches / (time.perf_counter() - started)


def _trainer(recipe: Train, root: Path, clips: pandas.DataFrame, features: Mapping):
    """A function that trains for `STEPS` steps on batches in memory and returns the steps per second."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = len(task_classes(read_classes(root), recipe.task))
    torch.manual_seed(recipe.seed)
    model = QDFormer(recipe.model, classes).to(device)
    criterion = model.build_criterion(recipe.loss).to(device)
    few = clips.head(STEPS * recipe.batch_size)
    batches: list[Batch] = list(_loader(recipe, few, features, 0))
    state = TrainingState(model, recipe.model_copy(update={"epochs": 1000}), steps_per_epoch=len(batches))

    def step() -> float:
        started = time.perf_counter()
        train_epoch(state, model, criterion, batches, recipe, device)
        return len(batches) / (time.perf_counter() - started)

    step()
    return step


def _report(rates: Mapping[object, float], recipe: Train, clips: int) -> None:
    title = (
        f"{clips} clips, batches of {recipe.batch_size} at {recipe.image_size} pixels, {torch.get_num_threads()} CPUs"
    )
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(("", "batches/s", "clips/s", "relative to a step", "goal")):
        table.add_column(column, justify="right" if place else "left")
    for workers in WORKERS:
        times = rates[workers] / rates["step"]
        goal = ("reached" if times >= GOAL else "missed") if workers else ""
        cells = [f"{rates[workers]:.1f}", f"{rates[workers] * recipe.batch_size:.0f}", f"{times:.1f} x"]
        table.add_row(f"loader, {workers} workers", *cells, f"{GOAL:g} x {goal}" if goal else "")
    table.add_row("training step", f"{rates['step']:.1f}", f"{rates['step'] * recipe.batch_size:.0f}", "", "")
    Console().print(table)
