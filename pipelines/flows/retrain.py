"""Flow `retrain`: if anything changed, reproduce, register the checkpoint, and make the better one the champion."""

from __future__ import annotations

import json
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipelines.flows.pipeline import run_dvc_repro
from pipelines.flows.reproduce import record_in_mlflow, show_results
from pipelines.record import current_verdict
from pipelines.settings import preset_settings
from pipelines.workspace import (
    CHECKPOINT,
    REPORTS,
    is_up_to_date,
    locked_outs,
    open_workspace,
    provenance,
    workspace_lock,
)
from qdformer.config.settings import Settings
from qdformer.utils.digests import file_sha256


@flow(name="retrain", flow_run_name="retrain {data}")
def retrain(data: str = "") -> str:
    """Train and evaluate with the newest settings, data and code, if they changed; return the verdict.

    The alias `champion` moves only to a checkpoint with a better test mIoU. After an interruption the next call
    continues.
    """
    settings, workspace = preset_settings(data), open_workspace(data)
    with workspace_lock(workspace) as lock:
        if is_up_to_date(workspace) and (verdict := current_verdict(settings, workspace)):
            print(f"Nothing changed: {verdict}")
            return verdict
        seconds = run_dvc_repro(workspace, lock)
        record = record_in_mlflow(settings, workspace)
        verdict = register_and_promote(settings, workspace, record.run_id)
    show_results(data, settings, workspace, record, seconds)
    print(f"Registered: {verdict}")
    return verdict


@task(cache_policy=NO_CACHE)
def register_and_promote(settings: Settings, workspace: Path, run_id: str) -> str:
    """Register the workspace's checkpoint as a version that points into DVC, and compare it with the champion."""
    from qdformer import tracking
    from qdformer.tracking.model_card import model_card

    model = tracking.experiment_name(settings)
    source = f"dvc://{locked_outs(workspace)[CHECKPOINT.parent.as_posix()]}/{CHECKPOINT.name}"
    intervals = json.loads((workspace / REPORTS / "intervals.json").read_text(encoding="utf-8"))
    card = model_card(settings, provenance(workspace), intervals, source)
    version = tracking.register(model, run_id, file_sha256(workspace / CHECKPOINT), source, card)
    return f"{model} version {version.version}, {tracking.promote(model, version)}"
