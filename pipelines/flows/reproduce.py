"""Flow `reproduce`: bring the pipeline up to date, record the results and show the test metrics."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from pipelines.flows.liveness import marked_alive
from pipelines.flows.pipeline import run_dvc_repro
from pipelines.record import Record, record_results
from pipelines.results import print_results, results_title
from pipelines.variant import open_variant
from pipelines.workspace import locked_workspace, workspace_lock
from qdformer.config.settings import Settings


@flow(name="reproduce", flow_run_name="reproduce {data}")
def reproduce(data: str = "", overrides: tuple[str, ...] = ()) -> None:
    """Bring the preset's pipeline up to date; show its test metrics and where they are recorded.

    With `overrides` (`KEY=VALUE`) the pipeline is that of `open_variant`.
    """
    with marked_alive(), _opened(data, overrides) as (settings, workspace, lock):
        data = workspace.name if overrides else data
        seconds = run_dvc_repro(workspace, lock)
        record = record_in_mlflow(settings, workspace)
    show_results(data, settings, workspace, record, seconds)


def artifact_key(*parts: str) -> str:
    """The key of an artifact: Prefect takes lowercase letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower())


@contextlib.contextmanager
def _opened(data: str, overrides: tuple[str, ...]) -> Iterator[tuple[Settings, Path, int]]:
    if not overrides:
        with locked_workspace(data) as opened:
            yield opened
        return
    settings, workspace = open_variant(data, overrides)
    with workspace_lock(workspace) as lock:
        yield settings, workspace, lock


@task(name="record", cache_policy=NO_CACHE)
def record_in_mlflow(settings: Settings, workspace: Path) -> Record:
    """Record the results as a task of the flow."""
    return record_results(settings, workspace)


def show_results(data: str, settings: Settings, workspace: Path, record: Record, seconds: dict[str, float]) -> None:
    """Print the results and keep them as an artifact of the flow run."""
    markdown = print_results(data, settings, workspace, record, seconds)
    key = artifact_key("reproduce", data or settings.download.dataset)
    create_markdown_artifact(markdown, key=key, description=results_title(data, settings))
