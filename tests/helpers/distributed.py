"""Training on several ranks without Ray: processes joined by gloo."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from qdformer.config.settings import load_settings
from qdformer.config.train import Train
from qdformer.data.dataset import AVSDataset, build_loader
from qdformer.data.layout import ClassInfo, metadata_row, write_clip, write_metadata
from qdformer.data.manifest import read_manifest
from qdformer.models.registry import build_model
from qdformer.training.loop import TrainingState, train_epoch
from tests.helpers import PROJECT

CPU = torch.device("cpu")
NAMES = ("dog", "cat", "cow")
SMALL_MODEL = {
    "backbone_weights": None,
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_prototypes": 2,
    "codebook_size": 4,
    "quantize_after": 0.4,
    "query_residual_dim": 4,
    "mask_dim": 8,
}


def recipe_with(model: dict[str, Any] | None = None, **changes: Any) -> Train:
    """A recipe of three epochs in batches of four with a small model, whose settings `model` changes."""
    recipe = load_settings(PROJECT / "params.yaml").train
    small = recipe.model.model_copy(update=SMALL_MODEL | (model or {}))
    values = {"image_size": 32, "epochs": 3, "batch_size": 4, "warmup_steps": 1, "precision": "float32"}
    values["cached_views"] = 0  # which needs a frozen backbone and clips of one size
    return recipe.model_copy(update=values | {"model": small} | changes)


def write_clips(root: Path, count: int = 9, val: int = 0) -> Path:
    """Write `count` clips of different lengths and aspect ratios, the last `val` of them for validation and the others
    for training; the features are `Sounds`.
    """
    rows = []
    for index in range(count):
        generator = np.random.default_rng(index)
        frames, height, width = 2 + index % 2, 32, (32, 48, 64)[index % 3]
        images = generator.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        labels = np.zeros((frames, height, width), np.uint8)
        kind = index % len(NAMES)
        labels[:-1, 8:24, 4:20] = kind + 1
        if index % 4 == 3:
            labels[:, 8:24, 24:30] = (kind + 1) % len(NAMES) + 1
        write_clip(root, "v1m", f"clip{index}", images, labels, generator.uniform(-0.5, 0.5, frames * 16000))
        classes = [NAMES[value - 1] for value in np.unique(labels) if value]
        split = "train" if index < count - val else "val"
        rows.append(
            metadata_row(f"clip{index}", subset="v1m", split=split, classes=classes, frames=frames, unseen=False)
        )
    write_metadata(root, rows, [ClassInfo(name, False) for name in NAMES])
    return root


class Sounds(dict):
    """Random features of the clips of `write_clips`."""

    def __missing__(self, uid: str) -> np.ndarray:
        index = int(uid.removeprefix("clip"))
        return np.random.default_rng(index).random((2 + index % 2, 128), np.float32)


def wrapped(model: nn.Module) -> nn.Module:
    """The model as Ray Train's `prepare_model` returns it: with gradients averaged over several ranks."""
    return DistributedDataParallel(model) if distributed.is_initialized() else model


def train(
    recipe: Train,
    root: Path,
    stop_after: int | None = None,
    state_dict: dict | None = None,
    on_epoch: Callable[[TrainingState], object] = lambda _state: None,
) -> TrainingState:
    """Train this rank's part of `recipe`, from `state_dict` if given, until `stop_after` steps if given.

    `on_epoch` is called after each whole epoch.
    """
    rank, world_size = (
        (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    )
    torch.manual_seed(recipe.seed)
    model = build_model(recipe.model, len(NAMES))
    criterion = model.build_criterion(recipe.loss)
    data = AVSDataset(read_manifest(root), Sounds(), recipe.image_size, recipe.augment, recipe.seed)
    loader = build_loader(data, recipe.batch_size, shuffle=True, rank=rank, world_size=world_size)
    state = TrainingState(model, recipe, len(loader))
    if state_dict is not None:
        state.load_state_dict(state_dict)
    network = wrapped(model)
    while state.epochs_done < recipe.epochs:
        loader.batch_sampler.set_epoch(state.epochs_done, state.steps_in_epoch)
        if (
            train_epoch(state, network, criterion, loader, recipe, CPU, lambda: state.steps_done == stop_after) is None
            or state.steps_done == stop_after
        ):
            break
        on_epoch(state)
    return state


def on_ranks(world_size: int, run: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The results of `run(*arguments)` in `world_size` processes joined by gloo.

    Arguments and results go through files: tensors in the arguments of a spawned process are shared by all ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(arguments, Path(folder, "arguments"))
        multiprocessing.spawn(_rank, (world_size, folder, run), world_size)
        return [torch.load(Path(folder, str(rank)), weights_only=False) for rank in range(world_size)]


def _rank(rank: int, world_size: int, folder: str, run: Callable[..., Any]) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        address = f"file://{folder}/rendezvous"
        distributed.init_process_group(
            "gloo", init_method=address, rank=rank, world_size=world_size, timeout=timedelta(minutes=2)
        )
    arguments = torch.load(Path(folder, "arguments"), weights_only=False)
    torch.save(run(*arguments), Path(folder, str(rank)))
