"""One Ray Train worker: loads the data, trains the model, and reports metrics and a checkpoint after each epoch."""

from __future__ import annotations

import json
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
from qdformer.training.loop import TrainingState, train_epoch

if TYPE_CHECKING:
    from qdformer.data.dataset import Batch
    from qdformer.training.job import Job


def train_worker(config: dict[str, Any]) -> None:
    """Train the job in `config`. Every rank reports once per epoch; rank 0 adds the checkpoint."""
    job: Job = config["job"]
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
        folder = job.storage / context.get_experiment_name() / "views"
        clips = CachedViews(data, model.backbone, recipe, folder, device)
    loader = build_loader(clips, recipe.batch_size, shuffle=True, rank=rank, world_size=context.get_world_size())
    sampler = loader.batch_sampler
    assert isinstance(sampler, EpochSampler)
    state = TrainingState(model, recipe, len(loader))

    def report_progress(batches: Iterable[Batch]) -> Iterator[Batch]:
        for step, batch in enumerate(batches, start=1 + state.epochs_done * len(loader)):
            yield batch
            job.progress_file.write_text(f"{step} {state.total_steps}", encoding="ascii")

    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state.load_state_dict(load_state(Path(folder)))

    for epoch in range(state.epochs_done, recipe.epochs):
        sampler.set_epoch(epoch)
        batches = report_progress(loader) if rank == 0 else loader
        metrics = train_epoch(state, network, criterion, batches, recipe, device)
        assert metrics is not None  # nothing stops an epoch
        if rank != 0:
            ray.train.report(metrics)
            continue
        if job.on_epoch is not None:
            job.on_epoch(metrics)
        with tempfile.TemporaryDirectory(dir=job.storage) as folder:
            save_state(Path(folder), state.state_dict())
            save_model(Path(folder) / "model.safetensors", model, classes, recipe.model)
            (Path(folder) / "history.json").write_text(json.dumps(state.history), encoding="utf-8")
            ray.train.report(metrics, ray.train.Checkpoint.from_directory(folder))
