"""A tiny network, and a folder of single sounds: tones of training and validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qdformer.audio.io.sound_table import sound_row, write_single_sound, write_sound_table
from qdformer.config.separate import Network, Separate

TINY = Network(
    enc_kernel_size=32,
    enc_num_feats=64,
    msk_kernel_size=3,
    msk_num_feats=16,
    msk_num_hidden_feats=16,
    msk_num_layers=2,
    msk_num_stacks=1,
)


@pytest.fixture
def network() -> dict[str, int]:
    return TINY.model_dump() | {"num_sources": 2}


@pytest.fixture
def settings() -> Separate:
    return Separate(
        weights="trained_here",
        published_source=None,
        published_sha256=None,
        sources=2,
        network=TINY,
        steps=30,
        batch_size=2,
        seconds=0.25,
        learning_rate=0.03,
        seed=0,
    )


@pytest.fixture
def sounds(tmp_path) -> Path:
    root, rows = tmp_path / "sounds", []
    seconds = np.arange(16000) / 16000
    for name, pitch in (("low", 200.0), ("high", 3000.0)):
        for split, factor in (("train", 1.0), ("val", 1.1)):
            path = f"source/{split}/{name}.flac"
            write_single_sound(root, path, 0.5 * np.sin(2 * np.pi * pitch * factor * seconds).astype(np.float32))
            rows.append(sound_row(path, role="source", split=split, label=name))
    hiss = np.random.default_rng(0).uniform(-0.5, 0.5, 16000).astype(np.float32)
    write_single_sound(root, "noise/train/hiss.flac", hiss)
    write_sound_table(root, [*rows, sound_row("noise/train/hiss.flac", role="noise", split="train")])
    return root
