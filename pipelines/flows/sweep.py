"""Flow `sweep`: bring every cell of a grid up to date, several at once, and compare the rows."""

from __future__ import annotations

import os
from pathlib import Path

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.task_runners import ThreadPoolTaskRunner

from pipelines.cell_record import PARENT_VARIABLE, POSITION_VARIABLE, cell_record
from pipelines.cells import Cell, Sweep, data_stage_names, plan_sweep, stage_names, write_sweep
from pipelines.cli import CommandError
from pipelines.environment import tracking_environment
from pipelines.flows.pipeline import run_dvc_repro
from pipelines.flows.reproduce import artifact_key
from pipelines.flows.workers import Workers, jobs_of
from pipelines.ray_head import shared_ray_session
from pipelines.record import Record
from pipelines.sweep_status import note_sweep, show_sweep, stale_cells, sweep_identity
from pipelines.workspace import CHECKPOINT, REPORTS, locked_workspace, provenance

LOGS = Path(".cache", "sweeps")
"""Where the output of the cells is kept, relative to the workspace."""


@flow(name="sweep", flow_run_name="sweep {grid} {data}")
def sweep(data: str, grid: str, seeds: int | None, overrides: list[str]) -> None:
    """Train and evaluate the stale cells of a grid; compare all rows. A failed cell does not stop the others."""
    with locked_workspace(data) as (settings, workspace, lock):
        plan = plan_sweep(settings, grid, seeds, overrides)
        write_sweep(plan, workspace)
        run_dvc_repro(workspace, lock, ("features",))
        if own := data_stage_names(plan):
            run_dvc_repro(workspace, lock, tuple(own))
        os.environ.update(tracking_environment())
        from pipelines.sweep_report import write_report  # these imports take seconds
        from qdformer import tracking

        tags = {**provenance(workspace), "sweep": grid}
        name = f"sweep {grid} of {data or settings.download.dataset}"
        with tracking.parent_run(settings, tags, name, plan.identity()) as parent:
            failed = _run_cells(plan, workspace, lock, parent)
            for cell in plan.cells:  # DVC's cache may have saved a cell its stages, and so its record
                if cell.name not in failed:
                    _record(cell, workspace, parent)
            report = write_report(plan, workspace, failed)
            for file in report.files:
                tracking.log_files(parent, file)
            page = ""
            if len(failed) < len(plan.cells):
                page = tracking.save_comparison(
                    parent, report.recorded_metrics, f"{name} {parent[:8]}", report.markdown, report.colors
                )
        record = Record(
            sweep_identity(plan, workspace),
            tracking.tracking_uri(),
            tracking.experiment_name(settings),
            parent,
            tracking.dashboard_url() + page,
        )
        if not failed:
            note_sweep(plan, workspace, record)
        show_sweep(data, plan, workspace, record)
        key = artifact_key("sweep", grid, data or settings.download.dataset)
        create_markdown_artifact(report.markdown, key=key, description=report.title)
    if failed:
        names = ", ".join(failed)
        raise CommandError(f"{len(failed)} of {len(plan.cells)} cells failed ({names}); the same command tries again")


def _run_cells(plan: Sweep, workspace: Path, lock: int, parent: str) -> dict[str, str]:
    """Bring the stale cells up to date; return the reason of each cell that failed, by its name."""
    stale = stale_cells(plan, workspace)
    print(f"{len(plan.cells)} cells, {len(plan.cells) - len(stale)} of them finished before", flush=True)
    if not stale:
        return {}
    # the longest first, so that none runs alone at the end
    stale.sort(key=lambda cell: -cell.settings.train.epochs * cell.settings.train.image_size**2)
    failed: dict[str, str] = {}
    with (
        shared_ray_session() as cluster,
        ThreadPoolTaskRunner[None](jobs_of(cluster)) as runner,
        Workers(workspace, lock, cluster) as workers,  # the first to end, so that the runner's threads end
    ):
        print(f"{len(stale)} cells to run, {workers}", flush=True)
        runs = []
        for cell in stale:
            of_cell = run_cell.with_options(task_run_name=cell.name)
            runs.append(runner.submit(of_cell, {"cell": cell, "workers": workers, "parent": parent}))
        for cell, run in zip(stale, runs, strict=True):
            error = run.result(raise_on_failure=False)
            if isinstance(error, BaseException):
                failed[cell.name] = str(error)
    return failed


@task(name="cell", cache_policy=NO_CACHE)
def run_cell(cell: Cell, workers: Workers, parent: str) -> None:
    """Train and evaluate one cell, as far as DVC finds it stale; raises `CellError`."""
    log = workers.workspace / LOGS / cell.grid / f"{cell.name}.log"
    environment = {PARENT_VARIABLE: parent, POSITION_VARIABLE: str(cell.position)}
    print(f"{cell.title}: started", flush=True)
    try:
        workers.run(stage_names(cell), log, environment)
        print(f"{cell.title}: finished", flush=True)
    except CommandError as error:
        print(f"{cell.title}: failed: {error}", flush=True)
        raise
    finally:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            get_run_logger().info(line)


def _record(cell: Cell, workspace: Path, parent: str) -> None:
    from qdformer import tracking

    folder = workspace / cell.folder
    record = cell_record(folder, cell.settings, parent, cell.position)
    tracking.log_evaluation(
        folder / REPORTS,
        cell.settings,
        record.tags,
        folder / CHECKPOINT,
        workspace / "data" / "dataset",
        name=record.name,
        parent=parent,
    )
