"""Time and memory of the metrics.

The metrics are compared with the forward pass of the model on the same clips, and AVSBench's F with a loop over its
thresholds. The clips are the test clips that the stage download has written to `data/dataset` (or below the folder
QDFORMER_BENCH_DATA), with the settings of `params.yaml`. The model is not trained, which does not affect the times; the
scored predictions are the shifted truth with noise. Times are medians over interleaved rounds. Memory is the peak of a
process that scores a stream of generated clips.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from qdformer.config.settings import Settings, load_settings
from qdformer.data.dataset import AVSDataset, Batch, build_loader
from qdformer.data.manifest import Classes, read_classes, read_manifest, task_classes
from qdformer.evaluation.controls import Constant
from qdformer.evaluation.evaluate import evaluate
from qdformer.metrics import avsbench
from qdformer.metrics.avsbench import THRESHOLDS
from qdformer.models.qdformer.model import QDFormer

ROUNDS, CLIPS = 3, 64
VIDEOS, FRAMES, SIDE = 4, 5, 224  # the batch of the published code, on which F of AVSBench is timed
FEW, MANY = 200, 2000
SHARE_GOAL, SPEED_GOAL, MEMORY_GOAL = 0.10, 20.0, 1.10


def run() -> None:
    """Measure, and print the table."""
    settings = load_settings()
    root = Path(os.environ.get("QDFORMER_BENCH_DATA", "data")) / "dataset"
    seconds: dict[str, list[float]] = {"forward": [], "scores": [], "everything": [], "one pass": [], "loop": []}
    clips, classes, batches = _clips(settings, root)
    torch.manual_seed(0)
    model = QDFormer(settings.train.model, len(classes)).eval()
    answers = {tuple(batch.uids): moved_truth(batch, len(classes)) for batch in batches}
    logits = 4 * torch.randn(VIDEOS, FRAMES, SIDE, SIDE)
    target = (torch.rand(VIDEOS, FRAMES, SIDE, SIDE) < 0.2).float()

    def score(bootstrap: int) -> None:
        evaluate(lambda batch: answers[tuple(batch.uids)], batches, classes, manifest=clips, bootstrap=bootstrap)

    calls = {
        "forward": lambda: [model.predict(batch.images_BTCHW, batch.audio_BTA, batch.valid_BT) for batch in batches],
        "scores": lambda: score(1),
        "everything": lambda: score(settings.evaluate.bootstrap),
        "one pass": lambda: avsbench.f_measure(logits, target, VIDEOS),
        "loop": lambda: looped_f(logits, target),
    }
    with tqdm(total=ROUNDS * len(calls), desc="metrics", leave=False) as bar:
        for _ in range(ROUNDS):
            for name, call in calls.items():
                started = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - started)
                bar.update()
    apart = abs(avsbench.f_measure(logits, target, VIDEOS).item() - looped_f(logits, target))
    peaks = [_peak(count) for count in (FEW, MANY)]
    _report({name: median(values) for name, values in seconds.items()}, len(clips), settings, apart, peaks)


def moved_truth(batch: Batch, classes: int) -> SimpleNamespace:
    """A prediction for a batch, made from its labels."""
    random = torch.Generator().manual_seed(0)
    semantic_BTHW = torch.roll(batch.labels_BTHW.where(batch.labels_BTHW != 255, 0), 5, dims=-1)
    noise_BTHW = torch.rand(semantic_BTHW.shape, generator=random)
    return SimpleNamespace(
        semantic_BTHW=semantic_BTHW,
        foreground_BTHW=0.6 * (semantic_BTHW > 0) + 0.4 * noise_BTHW,
        class_probs_BTC=torch.full((*semantic_BTHW.shape[:2], classes), 0.5),
        output=None,
    )


def looped_f(logits: torch.Tensor, target: torch.Tensor) -> float:
    """F of AVSBench for one batch [V, T, H, W] by its definition: a loop over frames and thresholds."""
    curves = []
    for soft_HW, truth_HW in zip(logits.sigmoid().flatten(0, 1), target.flatten(0, 1), strict=True):
        if not truth_HW.any():
            continue
        curve = []
        for threshold in THRESHOLDS:
            mask_HW = (soft_HW >= threshold).float()
            hits = (mask_HW * truth_HW).sum()
            precision, recall = hits / (mask_HW.sum() + 1e-20), hits / (truth_HW.sum() + 1e-20)
            curve.append((1.3 * precision * recall / (0.3 * precision + recall)).nan_to_num())
        curves.append(torch.stack(curve))
    return torch.stack(curves).mean(dim=0).max().item()


def _clips(settings: Settings, root: Path):
    recipe, manifest = settings.train, read_manifest(root)
    clips = manifest[manifest["split"] == settings.evaluate.split].head(CLIPS)
    silence = Constant(np.zeros(128, np.float32), dict(zip(clips["uid"], clips["frames"], strict=True)))
    data = AVSDataset(clips, silence, recipe.image_size, resize=recipe.resize, task=recipe.task)
    classes = task_classes(read_classes(root), recipe.task)
    return clips, classes, list(build_loader(data, settings.evaluate.batch_size))


def score_drawn(count: int) -> float:
    """Score `count` drawn clips as they come; the process's peak of memory in MB."""
    classes = Classes(tuple(f"class-{index}" for index in range(27)), (False,) * 27)
    yes_BT = torch.ones(1, 5, dtype=torch.bool)

    def drawn():
        for index in range(count):
            random = torch.Generator().manual_seed(index)
            labels_BTHW = torch.zeros(1, 5, 160, 160, dtype=torch.int64)
            labels_BTHW[:, :, 40:90, 30:80] = index % 27 + 1
            images_BTCHW = torch.randint(0, 256, (1, 5, 3, 160, 160), generator=random, dtype=torch.uint8)
            yield Batch(images_BTCHW, torch.zeros(1, 5, 128), labels_BTHW, yes_BT, yes_BT, [f"clip{index}"])

    evaluate(lambda batch: moved_truth(batch, 27), drawn(), classes, bootstrap=1000)
    # Peak of this program alone: the value of `getrusage` starts from the peak of the parent process.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def _peak(count: int) -> float:
    code = f"from bench_metrics import score_drawn; print(score_drawn({count}))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def _report(seconds: dict[str, float], clips: int, settings: Settings, apart: float, peaks: list[float]) -> None:
    size, threads = settings.train.image_size, torch.get_num_threads()
    table = Table(title=f"{clips} clips at {size} pixels, {threads} threads", title_justify="left")
    for place, column in enumerate(("", "measured", "beside it", "", "goal")):
        table.add_column(column, justify="right" if place else "left")

    def add(name: str, measured: str, beside: str, ratio: str, goal: str, met: bool) -> None:
        table.add_row(name, measured, beside, ratio, f"{goal} {'reached' if met else 'missed'}")

    forward = seconds["forward"]
    for name, what in (
        ("scores", "all scores"),
        ("everything", f"and {settings.evaluate.bootstrap} resamples, by sources too"),
    ):
        share = seconds[name] / forward
        times = f"{1e3 * seconds[name] / clips:.2f} ms a clip", f"forward {1e3 * forward / clips:.1f} ms"
        add(what, *times, f"{share:.1%}", f"<= {SHARE_GOAL:.0%}", share <= SHARE_GOAL)
    speed = seconds["loop"] / seconds["one pass"]
    times = f"{1e3 * seconds['one pass']:.1f} ms", f"loop {1e3 * seconds['loop']:.0f} ms"
    name = f"AVSBench F, {VIDEOS} x {FRAMES} frames of {SIDE} pixels ({apart:.0e} apart)"
    add(name, *times, f"{speed:.0f} x", f">= {SPEED_GOAL:g} x", speed >= SPEED_GOAL)
    growth = peaks[1] / peaks[0]
    memory = f"{peaks[1]:.0f} MB", f"{FEW} clips {peaks[0]:.0f} MB"
    add(f"peak memory, {MANY} clips", *memory, f"x {growth:.3f}", f"<= x {MEMORY_GOAL:g}", growth <= MEMORY_GOAL)
    Console().print(table)
