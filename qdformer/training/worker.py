"""One Ray Train worker: loads the data, trains the model, and reports metrics and a checkpoint after each epoch."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import ray.train.torch
import torch

from qdformer.audio.features.store import FeatureStore
from qdformer.data.dataset import AVSDataset, ClipDataset, EpochSampler, build_loader
from qdformer.data.manifest import read_classes, read_manifest, task_classes
from qdformer.models.registry import build_model
from qdformer.training.cached_views import CachedViews
from qdformer.training.checkpoint import load_state, save_model, save_state
from qdformer.training.loop import TrainingState, describe_epoch, train_epoch
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from qdformer.data.dataset import Batch
    from qdformer.training.job import Job


def train_worker(config: dict[str, Any]) -> None:
    """Train the job in `config` from the checkpoint given there, if any.

    Every rank reports once per epoch; rank 0 adds the checkpoint.
    """
    job: Job = config["job"]
    check_shared_folders(job)
    recipe = job.recipe
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(config["cpus"])
    torch.manual_seed(recipe.seed)
    device = ray.train.torch.get_device()

    manifest, classes = read_manifest(job.dataset), task_classes(read_classes(job.dataset), recipe.task)
    features = FeatureStore(job.features)
    train_clips = manifest[(manifest["split"] == "train") & ~manifest["uid"].isin(features.left_out)]
    data = AVSDataset(
        train_clips,
        features,
        recipe.image_size,
        recipe.augment,
        recipe.seed,
        resize=recipe.resize,
        task=recipe.task,
        frames=recipe.frames,
    )
    model = build_model(recipe.model, len(classes)).to(device)
    criterion = model.build_criterion(recipe.loss).to(device)
    network = ray.train.torch.prepare_model(model)
    clips: ClipDataset = data
    if recipe.cached_views:
        folder = config["folder"] / "views"
        clips = CachedViews(data, model.backbone, recipe, folder, device)
    loader = build_loader(clips, recipe.batch_size, shuffle=True, rank=rank, world_size=context.get_world_size())
    sampler = loader.batch_sampler
    assert isinstance(sampler, EpochSampler)
    state = TrainingState(model, recipe, len(loader))

    def report_progress(batches: Iterable[Batch]) -> Iterator[Batch]:
        for step, batch in enumerate(batches, start=1 + state.epochs_done * len(loader)):
            yield batch
            job.progress_file.write_text(f"{step} {state.total_steps}", encoding="ascii")

    def tell(line: str) -> None:
        if rank == 0:
            with job.messages_file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    if (checkpoint := config["checkpoint"]) is not None:
        state.load_state_dict(load_state(checkpoint))
        tell(f"Training: resumed after epoch {state.epochs_done} of {recipe.epochs}, step {state.steps_done}")

    for epoch in range(state.epochs_done, recipe.epochs):
        sampler.set_epoch(epoch)
        batches = report_progress(loader) if rank == 0 else loader
        metrics = train_epoch(state, network, criterion, batches, recipe, device)
        assert metrics is not None  # nothing stops an epoch
        if rank != 0:
            ray.train.report(metrics)
            continue
        tell(describe_epoch(metrics, recipe.epochs))
        if job.on_epoch is not None:
            job.on_epoch(metrics)
        with tempfile.TemporaryDirectory(dir=job.storage) as new:
            save_model(Path(new) / "model.safetensors", model, classes, recipe.model)
            (Path(new) / "history.json").write_text(json.dumps(state.history), encoding="utf-8")
            save_state(Path(new), state.state_dict())  # last: it writes the digests of all files
            ray.train.report(metrics, ray.train.Checkpoint.from_directory(new))


def check_shared_folders(job: Job) -> None:
    """Raise `InputError` if this node lacks a folder or file that all nodes of a cluster must see under one path."""
    for path in (job.dataset, job.features, job.inputs_file):
        if not path.exists():
            raise InputError(
                f"{path}: not found on the node {socket.gethostname()}; data set, features and checkpoints must lie in "
                "folders that all nodes of the Ray cluster share"
            )
