"""Stage `train`: data/dataset, data/features/CONDITION.h5 -> models/qdformer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import pandas

from pipelines.cli import stage_main
from pipelines.stages.features import model_features
from pipelines.workspace import CHECKPOINT, provenance
from qdformer import tracking
from qdformer.config.settings import Settings
from qdformer.models.backbones import build_backbone
from qdformer.training.job import Job
from qdformer.training.launch import launch
from qdformer.training.loop import TIMES


def train(settings: Settings, workspace: Path, out: Path, run_id: str | None) -> None:
    """Train on the workspace's data; write `out/model.safetensors` and `out/history.csv`.

    `run_id` is the MLflow run to which the metrics of every epoch are logged. The state from which a crashed training
    continues is kept below `.cache/ray` until other settings, data or code are trained there, because DVC empties `out`
    before a rerun and keeps the result only when the stage has ended.
    """
    workspace = workspace.resolve()
    features = model_features(settings, workspace, settings.train.condition)
    build_backbone(settings.train.model)  # reports missing weights here, in one line, and not in a worker
    storage = workspace / ".cache" / "ray" / out.name
    storage.mkdir(parents=True, exist_ok=True)
    job = Job(
        recipe=settings.train,
        dataset=workspace / "data" / "dataset",
        features=features.path,
        storage=storage,
        on_epoch=functools.partial(log_epoch, tracking.tracking_uri(), run_id) if run_id else None,
        on_start=functools.partial(tracking.log_tags, run_id) if run_id else None,
    )
    history = launch(job, out)
    # without times: DVC compares the checksum of this file, which must be the same for the same training
    pandas.DataFrame(history).drop(columns=list(TIMES)).to_csv(out / "history.csv", index=False)


def log_epoch(uri: str, run_id: str, metrics: Mapping[str, float]) -> None:
    """Log the metrics of one epoch from the process of a worker."""
    from qdformer import tracking  # its import takes seconds, and only rank 0 calls this

    tracking.log_epoch(uri, run_id, metrics)


def main(settings: Settings) -> None:
    workspace, out = Path.cwd(), CHECKPOINT.parent
    with tracking.training_run(settings, provenance(workspace), workspace / "data" / "dataset") as run_id:
        train(settings, workspace, out, run_id)
        tracking.finish_training(run_id, out / CHECKPOINT.name)


if __name__ == "__main__":
    stage_main(main)
