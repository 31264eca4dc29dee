"""Flow `retrain`: if anything changed, reproduce, register the checkpoint, and keep the better one as champion."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipelines.flows.pipeline import run_dvc_repro
from pipelines.flows.reproduce import CHECKPOINT, REPORTS, record, show
from pipelines.flows.server import prefect_api
from pipelines.flows.terminal import arguments, load_tracking, run_command
from pipelines.workspace import (
    dvc_command,
    locked_outs,
    open_workspace,
    preset_settings,
    provenance,
    tracking_environment,
    workspace_lock,
)
from qdformer.config.settings import Settings
from qdformer.tracking.model_card import model_card
from qdformer.utils.digests import file_sha256


@flow(name="retrain", flow_run_name="retrain {data}")
def retrain(data: str = "") -> str:
    """Do what is needed for the newest settings, data and code to be trained and judged; return the verdict.

    The alias `champion` moves only to a checkpoint whose test mIoU is better. Cut short anywhere,
    the next call goes on.
    """
    settings, workspace = preset_settings(data), open_workspace(data)
    with workspace_lock(workspace) as lock:
        if verdict := current_verdict(settings, workspace):
            return verdict
        seconds = run_dvc_repro(workspace, lock)
        run_id = record(settings, workspace)
        verdict = register_and_promote(settings, workspace, run_id)
    show(settings, workspace, run_id, seconds)
    print(f"Registered: {verdict}")
    return verdict


def current_verdict(settings: Settings, workspace: Path) -> str | None:
    """Tell and return the verdict on the workspace's checkpoint; None if anything is stale, or it was not judged."""
    if subprocess.run([dvc_command(), "status", "--quiet"], cwd=workspace).returncode:
        return None
    os.environ.update(tracking_environment())
    from qdformer import tracking

    model = tracking.experiment_name(settings)
    version = tracking.find_version(model, file_sha256(workspace / CHECKPOINT))
    if version is None or "judged" not in version.tags:
        return None
    verdict = f"{model} version {version.version}, {version.tags['judged']}"
    print(f"Nothing changed: {verdict}")
    return verdict


@task(cache_policy=NO_CACHE)
def register_and_promote(settings: Settings, workspace: Path, run_id: str) -> str:
    """Register the workspace's checkpoint as a version that points into DVC, and let it stand against the champion."""
    from qdformer import tracking

    model = tracking.experiment_name(settings)
    source = f"dvc://{locked_outs(workspace)[CHECKPOINT.parent.as_posix()]}/{CHECKPOINT.name}"
    intervals = json.loads((workspace / REPORTS / "intervals.json").read_text(encoding="utf-8"))
    card = model_card(settings, provenance(workspace), intervals, source)
    version = tracking.register(model, run_id, file_sha256(workspace / CHECKPOINT), source, card)
    return f"{model} version {version.version}, {tracking.promote(model, version)}"


def main(data: str) -> None:
    """Run the flow, unless there is nothing to do: that is told without starting Prefect's server."""
    if not current_verdict(preset_settings(data), open_workspace(data)):
        with prefect_api(meanwhile=load_tracking):
            retrain(data)


if __name__ == "__main__":
    given = arguments(__doc__).parse_args()
    run_command(lambda: main(given.data), given.data)
