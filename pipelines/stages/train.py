"""Stage `train`: data/dataset, data/features/clean.h5 -> models/qdformer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas

from pipelines.cli import stage_main
from pipelines.stages.features import feature_recipe
from pipelines.workspace import provenance
from qdformer import tracking
from qdformer.audio.features.store import FeatureStore
from qdformer.config.settings import Settings
from qdformer.models.backbones import build_backbone
from qdformer.training.job import Job
from qdformer.training.launch import launch


def train(settings: Settings, workspace: Path, out: Path, run_id: str | None) -> None:
    """Train on the workspace's data; write `out/model.safetensors` and `out/history.csv`.

    `run_id` is the MLflow run that takes the figures of every epoch. What is needed to go on after
    a crash is kept below `.cache/ray` until the run is finished, for DVC empties `out` before a rerun.
    """
    workspace = workspace.resolve()
    features = workspace / "data" / "features" / "clean.h5"
    made = feature_recipe(settings.features, workspace).info("clean")
    FeatureStore(features, **asdict(made))  # refuses any others
    build_backbone(settings.train.model)  # weights that cannot be had are told here, in one line, and not by a worker
    storage = workspace / ".cache" / "ray" / out.name
    storage.mkdir(parents=True, exist_ok=True)
    job = Job(
        recipe=settings.train,
        dataset=workspace / "data" / "dataset",
        features=features,
        storage=storage,
        on_epoch=functools.partial(log_epoch, tracking.tracking_uri(), run_id) if run_id else None,
    )
    history = launch(job, out)
    # without the times: the same training must give the same file, whose checksum DVC compares
    pandas.DataFrame(history).drop(columns="seconds").to_csv(out / "history.csv", index=False)


def log_epoch(uri: str, run_id: str, figures: Mapping[str, float]) -> None:
    """Record one epoch from the process of a worker."""
    from qdformer import tracking  # takes seconds to import, and only rank 0 calls this

    tracking.log_epoch(uri, run_id, figures)


def main(settings: Settings) -> None:
    workspace, out = Path.cwd(), Path("models/qdformer")
    with tracking.training_run(settings, provenance(workspace), workspace / "data" / "dataset") as run_id:
        train(settings, workspace, out, run_id)
        tracking.finish_training(run_id, out / "model.safetensors")


if __name__ == "__main__":
    stage_main(main)
