"""The MLflow store: its address, and a client whose calls are retried while the store cannot be reached.

`MLFLOW_TRACKING_URI` names the store; the default is `mlflow.db` in the working directory. The files of runs are kept
in `mlartifacts/` beside an SQLite store; a server has its own place for them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import DatasetInput, Experiment, Metric, Param, Run, RunStatus, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from qdformer.utils.errors import InputError

RETRY_SECONDS = 60.0
"""Seconds for which a call to a locked or unreachable store is retried."""

_UNREACHABLE = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR")
"""MLflow's error codes of a locked database and of a server that does not answer."""
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for a model without the alias that was asked for, and for a model that does not exist."""
_PAUSE_SECONDS = 0.5

P = ParamSpec("P")
T = TypeVar("T")

for _name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class TrackingError(InputError):
    """The store cannot be reached, or the record does not allow the request; the message says which."""


def tracking_uri() -> str:
    """The store's address, independent of later changes of the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


@contextlib.contextmanager
def warn_if_unreachable(consequence: str) -> Iterator[None]:
    """Print a warning with the `consequence` instead of failing when the block cannot reach the store."""
    try:
        yield
    except TrackingError as error:
        print(f"warning: {error}; {consequence}", file=sys.stderr, flush=True)


def _retried(method: Callable[Concatenate[Store, P], T]) -> Callable[Concatenate[Store, P], T]:
    """Retry a method of `Store` for `RETRY_SECONDS`, then raise `TrackingError`."""

    @functools.wraps(method)
    def retrying(self: Store, *args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return method(self, *args, **kwargs)
            except (MlflowException, OperationalError) as error:  # the latter while a store is opened
                if isinstance(error, MlflowException) and error.error_code not in _UNREACHABLE:
                    raise
                if time.monotonic() > deadline:
                    reason = str(error).strip().splitlines()[0]
                    raise TrackingError(f"{self.uri}: the MLflow store is locked or unreachable ({reason})") from error
            time.sleep(_PAUSE_SECONDS)

    return retrying


class Store:
    """The requests that this package sends to MLflow, each of them retried.

    Every method raises `TrackingError` if the store stays locked or unreachable for `RETRY_SECONDS`.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or tracking_uri()
        self._client = self._connect()

    @_retried
    def _connect(self) -> MlflowClient:
        return MlflowClient(self.uri)

    @_retried
    def find_experiment(self, name: str) -> Experiment | None:
        return self._client.get_experiment_by_name(name)

    def get_or_create_experiment(self, name: str) -> str:
        """The id of the experiment `name`."""
        if found := self.find_experiment(name):
            return found.experiment_id
        address, location = urlsplit(self.uri), None
        if address.scheme == "sqlite":
            location = (Path(unquote(address.path[1:])).parent / "mlartifacts" / name).absolute().as_uri()
        return self._create_experiment(name, location)

    @_retried
    def _create_experiment(self, name: str, location: str | None) -> str:
        kind = {"mlflow.experimentKind": "custom_model_development"}  # selects the dashboard's view of trainings
        return self._client.create_experiment(name, artifact_location=location, tags=kind)

    @_retried
    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        self._client.set_experiment_tag(experiment_id, key, value)

    @_retried
    def create_run(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> str:
        """Start a run and return its id."""
        return self._client.create_run(experiment_id, run_name=name, tags=dict(tags)).info.run_id

    @_retried
    def get_run(self, run_id: str) -> Run:
        return self._client.get_run(run_id)

    @_retried
    def search_runs(self, experiment_id: str, condition: str) -> list[Run]:
        """The runs that meet MLflow's filter `condition`, the newest first."""
        return self._client.search_runs([experiment_id], condition, order_by=["attributes.start_time DESC"])

    @_retried
    def set_running(self, run_id: str) -> None:
        self._client.update_run(run_id, RunStatus.to_string(RunStatus.RUNNING))

    @_retried
    def end_run(self, run_id: str, status: int) -> None:
        """Set the final `status`, a constant of `mlflow.entities.RunStatus`, and the end time."""
        self._client.set_terminated(run_id, RunStatus.to_string(status))

    @_retried
    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    @_retried
    def log_params(self, run_id: str, params: Mapping[str, object]) -> None:
        self._client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])

    @_retried
    def log_metrics(self, run_id: str, metrics: Mapping[str, float | None], step: int = 0) -> None:
        """Log the metrics that are not None."""
        now = int(time.time() * 1000)
        defined = [Metric(key, float(value), now, step) for key, value in metrics.items() if value is not None]
        self._client.log_batch(run_id, defined)

    @_retried
    def metric_steps(self, run_id: str, key: str) -> set[int]:
        """The steps at which a metric was logged."""
        return {metric.step for metric in self._client.get_metric_history(run_id, key)}

    @_retried
    def log_input(self, run_id: str, dataset: DatasetInput) -> None:
        self._client.log_inputs(run_id, datasets=[dataset])

    @_retried
    def log_dict(self, run_id: str, values: dict[str, Any], file: str) -> None:
        """Store values as a YAML or JSON file of the run, according to the suffix of `file`."""
        self._client.log_dict(run_id, values, file)

    @_retried
    def log_text(self, run_id: str, text: str, file: str) -> None:
        self._client.log_text(run_id, text, file)

    @_retried
    def load_text(self, run_id: str, file: str) -> str:
        """The content of a file of the run."""
        with tempfile.TemporaryDirectory() as folder:
            return Path(self._client.download_artifacts(run_id, file, folder)).read_text(encoding="utf-8")

    @_retried
    def download(self, run_id: str, file: str, folder: Path) -> Path:
        """Copy a file of the run to `folder`; return its path there."""
        return Path(self._client.download_artifacts(run_id, file, str(folder)))

    @_retried
    def log_file(self, run_id: str, path: Path) -> None:
        self._client.log_artifact(run_id, str(path))

    @_retried
    def log_folder(self, run_id: str, folder: Path, target: str | None = None) -> None:
        """Store all files below `folder` in the folder `target` of the run."""
        self._client.log_artifacts(run_id, str(folder), target)

    @_retried
    def search_versions(self, model: str) -> Sequence[ModelVersion]:
        return self._client.search_model_versions(f"name = '{model}'")

    @_retried
    def find_version_by_alias(self, model: str, alias: str) -> ModelVersion | None:
        try:
            return self._client.get_model_version_by_alias(model, alias)
        except MlflowException as error:
            if error.error_code in _UNKNOWN:
                return None
            raise

    @_retried
    def create_model_if_missing(self, model: str) -> None:
        if not self._client.search_registered_models(f"name = '{model}'"):
            self._client.create_registered_model(model)

    @_retried
    def create_version(
        self, model: str, source: str, run_id: str, tags: Mapping[str, str], description: str
    ) -> ModelVersion:
        return self._client.create_model_version(model, source, run_id, tags=dict(tags), description=description)

    @_retried
    def set_alias(self, model: str, alias: str, version: str) -> None:
        self._client.set_registered_model_alias(model, alias, version)

    @_retried
    def model_tags(self, model: str) -> dict[str, str]:
        """The tags of a model; empty if there is no such model."""
        found = self._client.search_registered_models(f"name = '{model}'")
        return dict(found[0].tags) if found else {}

    @_retried
    def set_model_tag(self, model: str, key: str, value: str) -> None:
        self._client.set_registered_model_tag(model, key, value)

    @_retried
    def delete_version_tag(self, model: str, version: str, key: str) -> None:
        """Remove a tag that may not exist."""
        if key in self._client.get_model_version(model, version).tags:
            self._client.delete_model_version_tag(model, version, key)

    @_retried
    def set_version_tag(self, model: str, version: str, key: str, value: str) -> None:
        self._client.set_model_version_tag(model, version, key, value)
