"""Flow `sweep`: train and evaluate every row of `sweep.rows` in one Ray session, and compare the rows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from pipelines.console import markdown_table, print_table
from pipelines.environment import shown_path, tracking_environment
from pipelines.flows.pipeline import run_dvc_repro
from pipelines.settings import preset_label, preset_settings
from pipelines.workspace import open_workspace, provenance, workspace_lock
from qdformer.config.settings import Settings, parse_settings
from qdformer.utils.digests import short_digest
from qdformer.utils.files import new_folder, write_rows, write_text

CONDITION = "clean"
COMPARED = ("davis_jf", "miou_dataset", "miou_per_frame", "avsbench_j", "avsbench_f")


@flow(name="sweep", flow_run_name="sweep {data}")
def sweep(data: str = "") -> None:
    """Compare the rows on the preset's data. Rows that are finished and still valid are not run again."""
    settings, workspace = preset_settings(data), open_workspace(data)
    rows = {name: row_settings(settings, name) for name in settings.sweep.rows}
    with workspace_lock(workspace) as lock:
        run_dvc_repro(workspace, lock, ("features",))
        os.environ.update(tracking_environment())
        from pipelines.robustness import compare_robustness  # these imports take seconds
        from qdformer import tracking

        tags = provenance(workspace)
        with tracking.parent_run(settings, tags, "sweep") as parent:
            with _session_if(not all(is_finished(name, row, workspace) for name, row in rows.items())):
                for name, row in rows.items():
                    run_row.with_options(task_run_name=name)(name, row, workspace, parent)
            table = workspace / "sweeps" / "comparison.csv"
            lines = compare(workspace, rows, table)
            curves = workspace / "sweeps" / "robustness.png"
            compare_robustness({row: workspace / "sweeps" / row / "reports" for row in rows}, curves)
            for file in (table, table.with_suffix(".md"), curves, curves.with_suffix(".csv")):
                tracking.log_files(parent, file)
            text = table.with_suffix(".md").read_text(encoding="utf-8")
            metrics = [f"{CONDITION}/{key}" for key in COMPARED]
            page = tracking.save_comparison(parent, list(rows), metrics, f"sweep {parent[:8]}", text)
    title = (
        f"Sweep of {preset_label(data)} (data set {settings.download.dataset}): {CONDITION}, ± half of the 95 % "
        "interval, change from the row above"
    )
    print_table(title, ["row", *COMPARED], lines)
    where = f"{tracking.tracking_uri()} · experiment {tracking.experiment_name(settings)} · run {parent}"
    print(
        f"\nTable: {shown_path(table)}\nRobustness: {shown_path(curves)}\n"
        f"MLflow record: {where}\nOpen it with:  make ui"
    )
    print(f"Charts and table of the sweep, while that runs: {tracking.dashboard_url()}{page}")
    create_markdown_artifact(f"## {title}\n\n{text}\n\nMLflow: {where}", key=f"sweep-{settings.download.dataset}")


def row_settings(settings: Settings, name: str) -> Settings:
    """The settings of one row: parts of the model switched on or off, and `sweep.epochs` epochs."""
    values = settings.model_dump()
    values["train"]["model"].update(settings.sweep.rows[name])
    values["train"]["epochs"] = settings.sweep.epochs
    return parse_settings(values, f"sweep.rows.{name}")


@task(name="row", cache_policy=NO_CACHE)
def run_row(name: str, settings: Settings, workspace: Path, parent: str) -> None:
    """Train and evaluate one row, as far as that has not been done, and record it under the run `parent`."""
    from qdformer import tracking

    out, tags = workspace / "sweeps" / name, provenance(workspace)
    checkpoint, reports = out / "model.safetensors", out / "reports"
    dataset, seconds = workspace / "data" / "dataset", None
    if is_finished(name, settings, workspace):
        print(f"Row {name}: finished before", flush=True)
    else:
        from pipelines.stages.evaluate import evaluate_checkpoint
        from pipelines.stages.train import train

        print(f"Row {name}", flush=True)
        identity = _identity(settings, workspace)
        with tracking.training_run(settings, tags, dataset, name, parent) as run_id:
            if _kept_identity(out) != identity:
                shutil.rmtree(out, ignore_errors=True)
                out.mkdir(parents=True)
                write_text(out / "identity", identity)
            if not (out / "history.csv").is_file():  # written last
                train(settings, workspace, out, run_id)
            tracking.finish_training(run_id, checkpoint)
            started = time.monotonic()
            with new_folder(reports) as partial:
                evaluate_checkpoint(settings, workspace, checkpoint, partial, settings.sweep.conditions)
            seconds = time.monotonic() - started
    tracking.log_evaluation(reports, settings, tags, checkpoint, dataset, name=name, parent=parent, seconds=seconds)


def is_finished(name: str, settings: Settings, workspace: Path) -> bool:
    """Whether the row was trained and evaluated with these settings on this data by this code."""
    out = workspace / "sweeps" / name
    return (out / "reports").is_dir() and _kept_identity(out) == _identity(settings, workspace)


def compare(workspace: Path, rows: Iterable[str], table: Path) -> list[list[str]]:
    """Write the comparison to `table` (CSV) and beside it in Markdown; return its lines as text."""
    lines: list[list[str]] = []
    records: list[dict[str, Any]] = []
    above: dict[str, Any] = {}
    for row in rows:
        intervals = json.loads((workspace / "sweeps" / row / "reports" / "intervals.json").read_text(encoding="utf-8"))
        line, record = [row], dict[str, Any](row=row)
        for key in COMPARED:
            value, low, high = (intervals[CONDITION][key][part] for part in ("value", "low", "high"))
            change = value - above[key] if key in above else None
            record |= {key: value, f"{key}_low": low, f"{key}_high": high, f"{key}_change": change}
            line.append(f"{value:.3f} ± {(high - low) / 2:.3f}" + ("" if change is None else f" ({change:+.3f})"))
        lines.append(line)
        records.append(record)
        above = record
    write_rows(table, list(records[0]), records)
    write_text(table.with_suffix(".md"), markdown_table(["row", *COMPARED], lines) + "\n")
    return lines


def _identity(settings: Settings, workspace: Path) -> str:
    tags = provenance(workspace)
    parts = [
        settings.train.model_dump_json(),
        settings.evaluate.model_dump_json(),
        *settings.sweep.conditions,
        tags["data_digest"],
        tags["code_digest"],
    ]
    return short_digest(parts)


def _kept_identity(out: Path) -> str | None:
    path = out / "identity"
    return path.read_text(encoding="ascii") if path.is_file() else None


@contextlib.contextmanager
def _session_if(needed: bool) -> Iterator[None]:
    if not needed:
        yield
        return
    from qdformer.utils.ray_session import ray_session  # Ray and torch take seconds to import

    with ray_session():
        yield
