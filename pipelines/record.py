"""The MLflow record of a workspace's results, and a note of it that is read without importing MLflow."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pipelines.environment import tracking_environment
from pipelines.workspace import CHECKPOINT, REPORTS, provenance
from qdformer.utils.digests import file_sha256, short_digest
from qdformer.utils.files import write_text

if TYPE_CHECKING:
    from qdformer.config.settings import Settings

NOTE = Path(".cache", "record.json")
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Record:
    """Where the results are recorded. `identity` names the results and the store."""

    identity: str
    uri: str
    experiment: str
    run_id: str
    runs_url: str

    def __str__(self) -> str:
        return f"{self.uri} · experiment {self.experiment} · run {self.run_id}"


def record_results(settings: Settings, workspace: Path) -> Record:
    """Record the workspace's checkpoint and evaluation, as far as the store does not hold them, and note where."""
    os.environ.update(tracking_environment())
    from qdformer import tracking  # its import takes seconds

    dataset, checkpoint = workspace / "data" / "dataset", workspace / CHECKPOINT
    run_id = tracking.log_evaluation(workspace / REPORTS, settings, provenance(workspace), checkpoint, dataset)
    experiment = tracking.experiment_name(settings)
    record = Record(
        _identity(settings, workspace), tracking.tracking_uri(), experiment, run_id, tracking.runs_url(experiment)
    )
    write_text(workspace / NOTE, json.dumps(asdict(record), indent=1) + "\n")
    return record


def noted_record(settings: Settings, workspace: Path) -> Record | None:
    """The record of the results as they are, if it was noted and the store still holds it; otherwise None.

    Only a local SQLite store is looked into, which takes no time. For a server the answer is always None.
    """
    try:
        record = Record(**json.loads((workspace / NOTE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return record if record.identity == _identity(settings, workspace) and is_in_store(record) else None


def current_verdict(settings: Settings, workspace: Path) -> str | None:
    """The verdict on the workspace's registered checkpoint, which must be up to date; None if it has none yet."""
    os.environ.update(tracking_environment())
    from qdformer import tracking  # its import takes seconds

    model = tracking.experiment_name(settings)
    version = tracking.find_version(model, file_sha256(workspace / CHECKPOINT))
    if version is None or "judged" not in version.tags:
        return None
    return f"{model} version {version.version}, {version.tags['judged']}"


def _identity(settings: Settings, workspace: Path) -> str:
    """Names the store and the results: `dvc.lock` holds the digests of the checkpoint and of all metrics."""
    lock = workspace / "dvc.lock"
    uri = tracking_environment()["MLFLOW_TRACKING_URI"]
    return short_digest([uri, settings.model_dump_json(), file_sha256(lock) if lock.is_file() else ""])


def is_in_store(record: Record) -> bool:
    """Whether the store still holds the record; only a local SQLite store is looked into."""
    if not record.uri.startswith(SQLITE):
        return False
    address = f"file:{quote(record.uri.removeprefix(SQLITE))}?mode=ro"
    query = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as store:
            return store.execute(query, (record.run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False
