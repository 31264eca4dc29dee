"""Flow `evaluate`: measure a published checkpoint, on data and features that are brought up to date first."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from pipelines.flows.pipeline import run_dvc_repro
from pipelines.published import evaluate_published
from pipelines.workspace import locked_workspace


@flow(name="evaluate", flow_run_name="evaluate {data}")
def evaluate(data: str, checkpoint: Path) -> None:
    """Evaluate a checkpoint of the public code of the method of the preset `data`."""
    with locked_workspace(data) as (settings, workspace, lock):
        run_dvc_repro(workspace, lock, tuple(f"features@{condition}" for condition in settings.mix.conditions))
        evaluate_published(data, settings, workspace, checkpoint)
