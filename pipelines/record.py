"""The MLflow record of a workspace's results, and a note of it that is read without importing MLflow."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sqlite3
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from pipelines.cli import CommandError
from pipelines.environment import tracking_environment
from pipelines.workspace import CHECKPOINT, REPORTS, provenance
from qdformer.utils.digests import file_sha256, short_digest
from qdformer.utils.files import write_text

if TYPE_CHECKING:
    from qdformer.config.settings import Settings

NOTE = Path(".cache", "record.json")
SQLITE = "sqlite:///"
_PROBE_SECONDS = 5.0
_PORTS = {"postgresql": 5432, "mysql": 3306}


class StoreError(CommandError):
    """The MLflow store does not answer."""


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


def require_tracking_store() -> None:
    """Raise `StoreError`, within seconds and without importing MLflow, if its store cannot be reached.

    A run is not started without its record: what was not recorded could not be compared later. A store that goes away
    during a run does not stop it; what is missing is recorded when the store is back.
    """
    uri = tracking_environment()["MLFLOW_TRACKING_URI"]
    address = urlsplit(uri)
    shown = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()  # without a password
    try:
        if address.scheme in ("http", "https"):
            _require_answer(f"{shown.rstrip('/')}/health")
        elif address.scheme == "sqlite":
            _require_writable(Path(uri.removeprefix(SQLITE)))
        elif port := _PORTS.get(address.scheme.partition("+")[0]):
            socket.create_connection((address.hostname or "localhost", address.port or port), _PROBE_SECONDS).close()
    except (OSError, ValueError, sqlite3.Error, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise StoreError(
            f"MLFLOW_TRACKING_URI={shown}: the MLflow store cannot be reached ({reason}); "
            "start it, or unset the variable to use mlflow.db in the project"
        ) from None


def _require_writable(path: Path) -> None:
    wanted = path if path.exists() else path.parent
    if not os.access(wanted, os.R_OK | os.W_OK):
        raise PermissionError(f"{wanted} cannot be written" if wanted.exists() else f"there is no folder {wanted}")


def _require_answer(url: str) -> None:
    try:
        urllib.request.urlopen(url, timeout=_PROBE_SECONDS).close()
    except urllib.error.HTTPError as error:  # it answers, if only to refuse
        if error.code >= 500:
            raise


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


def current_verdict(settings: Settings, workspace: Path, preset: str) -> str | None:
    """The verdict on the workspace's registered checkpoint, which must be up to date; None if it has none yet."""
    os.environ.update(tracking_environment())
    from pipelines.promotion import model_name  # these imports take seconds
    from qdformer import tracking

    model = model_name(settings, preset)
    version = tracking.find_version(model, file_sha256(workspace / CHECKPOINT))
    if version is None or tracking.JUDGED not in version.tags:
        return None
    withdrawn = f"; withdrawn since: {reason}" if (reason := version.tags.get(tracking.WITHDRAWN)) else ""
    return f"{model} version {version.version}, {version.tags[tracking.JUDGED]}{withdrawn}"


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
