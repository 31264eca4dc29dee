"""One Ray Train worker: loads the data, trains the model, and reports metrics and a checkpoint after each epoch."""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray.train
import ray.train.torch
import torch

from qdformer.audio.features.store import FeatureStore
from qdformer.data.dataset import AVSDataset, ClipDataset, EpochSampler, build_loader
from qdformer.data.manifest import read_classes, read_manifest, task_classes
from qdformer.models.registry import build_model
from qdformer.training.cached_views import CachedViews
from qdformer.training.checkpoint import MODEL, load_state, model_bytes, save_state
from qdformer.training.loop import TrainingState, describe_epoch, is_finished, train_epoch
from qdformer.training.validation import is_selected, validate
from qdformer.utils.distributed import from_first_rank
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    import pandas

    from qdformer.data.dataset import Batch
    from qdformer.training.job import Job


def train_worker(config: dict[str, Any]) -> None:
    """Train the job in `config` from the checkpoint given there, if any.

    Every rank reports once per checkpoint, which rank 0 adds: after each epoch, and within one every
    `checkpoint_minutes`.
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
    data = _clips(job, manifest, "train")
    model = build_model(recipe.model, len(classes)).to(device)
    criterion = model.build_criterion(recipe.loss).to(device)
    network = ray.train.torch.prepare_model(model)
    clips: ClipDataset = data
    if recipe.cached_views:
        folder = config["folder"] / "views"
        clips = CachedViews(data, model.backbone, recipe, folder, device)
    loader = build_loader(
        clips,
        recipe.batch_size,
        shuffle=True,
        workers=config["loader_workers"],
        rank=rank,
        world_size=context.get_world_size(),
    )
    sampler = loader.batch_sampler
    assert isinstance(sampler, EpochSampler)
    state = TrainingState(model, recipe, len(loader))
    val_loader = None
    if recipe.validate_every:
        val = _clips(job, manifest, "val")
        if not len(val):
            raise InputError("train.validate_every: the data set has no clips in the split val; expected 0")
        val_loader = build_loader(val, recipe.batch_size, rank=rank, world_size=context.get_world_size())

    def report_progress(batches: Iterable[Batch]) -> Iterator[Batch]:
        for step, batch in enumerate(batches, start=1 + state.steps_done):
            yield batch
            job.progress_file.write_text(f"{step} {state.total_steps}", encoding="ascii")

    def tell(line: str) -> None:
        if rank == 0:
            with job.messages_file.open("a", encoding="utf-8") as file:
                file.write(f"{line}\n")

    selected: bytes | None = None  # the file of the model that is kept, of rank 0
    last_checkpoint = time.monotonic()

    def checkpoint_is_due() -> bool:
        return from_first_rank(time.monotonic() - last_checkpoint > 60 * recipe.checkpoint_minutes)

    def report(metrics: dict[str, float]) -> None:
        """Report a checkpoint of the present state; the metrics are those of the epoch that has ended, if any."""
        nonlocal last_checkpoint
        contents = state.state_dict()  # of all ranks
        if rank != 0:
            ray.train.report(metrics)
        else:
            with tempfile.TemporaryDirectory(dir=job.storage) as new:
                if selected is not None:
                    (Path(new) / MODEL).write_bytes(selected)
                (Path(new) / "history.json").write_text(json.dumps(state.history), encoding="utf-8")
                save_state(Path(new), contents)  # last: it writes the digests of all files
                ray.train.report(metrics, ray.train.Checkpoint.from_directory(new))
        last_checkpoint = time.monotonic()

    if (checkpoint := config["checkpoint"]) is not None:
        state.load_state_dict(load_state(checkpoint))
        if state.epochs_done:
            selected = (checkpoint / MODEL).read_bytes()
        tell(f"Training: resumed after epoch {state.epochs_done} of {recipe.epochs}, step {state.steps_done}")

    while not is_finished(state.history, recipe):
        epoch = state.epochs_done
        sampler.set_epoch(epoch, state.steps_in_epoch)
        batches = report_progress(loader) if rank == 0 else loader
        metrics = train_epoch(state, network, criterion, batches, recipe, device, checkpoint_is_due)
        if metrics is None:
            report({})
            continue
        if val_loader is not None and ((epoch + 1) % recipe.validate_every == 0 or epoch + 1 == recipe.epochs):
            started = time.monotonic()
            metrics |= validate(model, criterion, val_loader, device)
            metrics["seconds"] += from_first_rank(time.monotonic() - started)
        tell(describe_epoch(metrics, recipe.epochs))
        if rank == 0:
            if job.on_epoch is not None:
                job.on_epoch(metrics)
            if is_selected(state.history, recipe.select):
                selected = model_bytes(model, classes, recipe.model)
        report(metrics)


def _clips(job: Job, manifest: pandas.DataFrame, split: Literal["train", "val"]) -> AVSDataset:
    """The clips of a split that have audio features; those of `val` are whole and not augmented."""
    recipe, features = job.recipe, FeatureStore(job.features)
    return AVSDataset(
        manifest[(manifest["split"] == split) & ~manifest["uid"].isin(features.left_out)],
        features,
        recipe.image_size,
        recipe.augment if split == "train" else None,
        recipe.seed,
        resize=recipe.resize,
        task=recipe.task,
        frames=recipe.frames if split == "train" else None,
    )


def check_shared_folders(job: Job) -> None:
    """Raise `InputError` if this node lacks a folder or file that all nodes of a cluster must see under one path."""
    for path in (job.dataset, job.features, job.inputs_file):
        if not path.exists():
            raise InputError(
                f"{path}: not found on the node {socket.gethostname()}; data set, features and checkpoints must lie in "
                "folders that all nodes of the Ray cluster share"
            )
