"""The model summary: every parameter and operation is counted in exactly one part."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qdformer.config.settings import load_settings
from qdformer.training.cost import REST, peak_memory, random_clip, summarize
from tests.helpers import PROJECT
from tests.helpers.model import make_model


class Small(nn.Module):
    """Two child modules and a matrix product of its own; the `forward` of the second child is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = Attend()
        self.project = nn.Sequential(nn.Linear(8, 4, bias=False))
        self.own = nn.Parameter(torch.ones(4, 2))

    def forward(self, images: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        return self.project[0](self.attend(images)) @ self.own


class Attend(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_operations_are_counted_where_they_are_done():
    x = torch.rand(1, 3, 8, requires_grad=True)
    parts = {part.name: part for part in summarize(Small(), x, x)}
    assert list(parts) == ["attend", "project", REST]
    assert {name: part.flops for name, part in parts.items()} == {
        "attend": 2 * (2 * 3 * 3 * 8),  # queries by keys, and weights by values
        "project": 2 * 3 * 8 * 4,
        REST: 2 * 3 * 4 * 2,
    }
    assert {name: part.parameters for name, part in parts.items()} == {"attend": 0, "project": 32, REST: 8}
    assert all(part.seconds >= 0 for part in parts.values())


def test_the_parts_of_qdformer_add_up():
    model = make_model()
    model.backbone.stem.requires_grad_(False)
    clip = random_clip(2, 64)
    parts = summarize(model, *clip)
    assert [part.name for part in parts] == [*(name for name, _ in model.named_children()), REST]
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in model.parameters())
    assert sum(part.trained for part in parts) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    with FlopCounterMode(display=False) as counter:
        model.eval()(*clip)
    assert sum(part.flops for part in parts) == counter.get_total_flops()
    shares = {part.name: part.flops / counter.get_total_flops() for part in parts}
    assert shares["backbone"] > 0.3 and shares[REST] < 0.01


def test_a_training_step_takes_more_memory_than_a_forward_pass():
    model = make_model()
    loss = load_settings(PROJECT / "params.yaml").train.loss
    # In a process of its own, because the memory that earlier tests have freed would be used again.
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        memory = process.submit(peak_memory, model, loss, *random_clip(5, 160)).result()
    assert 0 < memory.before <= memory.forward < memory.training_step < 8e9
    assert memory.training_step - memory.forward > 20e6


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipelines.cost", *arguments]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_prints_a_line_for_each_part():
    done = command("--data", "toy")
    assert done.returncode == 0, done.stderr
    assert "QDFormer with the settings of preset toy" in done.stdout and "The weights are random" in done.stdout
    for part in ("backbone", "pixel_encoder", "fusion", "mask_decoder", REST, "all"):
        assert f"│ {part}" in done.stdout
    assert "5 frames of 64 x 64 pixels" in done.stdout and "GB in a training step" in done.stdout
    done = command("--data", "nope")
    assert done.returncode == 2 and done.stderr.startswith("error: no preset 'nope'; there are: ")
    assert " avss, " in done.stderr
