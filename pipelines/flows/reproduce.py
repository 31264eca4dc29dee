"""Flow `reproduce`: bring the pipeline up to date, see to its record, show the test metrics."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from pipelines.flows.pipeline import run_dvc_repro
from pipelines.flows.terminal import markdown_table, print_table, run_flow
from pipelines.workspace import open_workspace, preset_settings, provenance, tracking_environment, workspace_lock
from qdformer.config.settings import Settings

CHECKPOINT = Path("models", "qdformer", "model.safetensors")
REPORTS = Path("reports")


@flow(name="reproduce", flow_run_name="reproduce {data}")
def reproduce(data: str = "") -> None:
    """Bring the preset's pipeline up to date and show its test metrics and where their record is."""
    settings, workspace = preset_settings(data), open_workspace(data)
    with workspace_lock(workspace) as lock:
        seconds = run_dvc_repro(workspace, lock)
        run_id = record(settings, workspace)
    show(settings, workspace, run_id, seconds)


@task(cache_policy=NO_CACHE)
def record(settings: Settings, workspace: Path) -> str:
    """See to it that this store's record holds the workspace's checkpoint and evaluation; return the run's id."""
    os.environ.update(tracking_environment())
    from qdformer import tracking  # takes seconds to import

    dataset = workspace / "data" / "dataset"
    return tracking.log_evaluation(
        workspace / REPORTS, settings, provenance(workspace), workspace / CHECKPOINT, dataset
    )


def show(settings: Settings, workspace: Path, run_id: str, seconds: Mapping[str, float]) -> None:
    """Print the test metrics, the time that each stage took and where the record is; keep them with the flow run."""
    from qdformer import tracking

    metrics = read_metrics(workspace / REPORTS, [*settings.mix.conditions, *settings.evaluate.controls])
    columns = list(dict.fromkeys(key for figures in metrics.values() for key in figures))
    rows = [[name, *(_figure(figures.get(key)) for key in columns)] for name, figures in metrics.items()]
    timings = [[name, f"{value:.1f}"] for name, value in seconds.items()]
    title = f"Test metrics of {settings.download.dataset} ({describe_protocol(settings)})"
    print_table(title, ["condition", *columns], rows)
    if timings:
        print_table("Seconds per stage", ["stage", "seconds"], [*timings, ["all", f"{sum(seconds.values()):.1f}"]])
    else:
        print("Every stage was up to date.")
    where = f"{tracking.tracking_uri()} · experiment {tracking.experiment_name(settings)} · run {run_id}"
    print(f"\nMLflow record: {where}\nopen it with:  make ui")
    print(f"All runs and their scores, while that runs: {tracking.runs_url(tracking.experiment_name(settings))}")
    markdown = [f"## {title}", markdown_table(["condition", *columns], rows), f"MLflow: {where}"]
    if timings:
        markdown.append(markdown_table(["stage", "seconds"], timings))
    create_markdown_artifact("\n\n".join(markdown), key=f"reproduce-{settings.download.dataset}", description=title)


def describe_protocol(settings: Settings) -> str:
    """What figures must be told with: the split and its rule, the task, the resizing."""
    return f"{settings.evaluate.split} split, {settings.download.split}; {settings.train.task}; {settings.train.resize}"


def read_metrics(reports: Path, order: list[str]) -> dict[str, dict[str, float]]:
    """The figures in `metrics/*.json` by condition, those in `order` first."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (reports / "metrics").glob("*.json")}
    return {name: found[name] for name in [*order, *sorted(set(found) - set(order))] if name in found}


def _figure(value: float | None) -> str:
    return "" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"


if __name__ == "__main__":
    run_flow(reproduce, __doc__)
