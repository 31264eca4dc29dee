"""The record of what was run, in MLflow: one run per training, its evaluation in the same run.

The store is named by `MLFLOW_TRACKING_URI`; without it, it is `mlflow.db` in the working directory.
Beside an SQLite store the files are kept in `mlartifacts/`; a server decides for itself. Weights
never come here: a registered version points at the checkpoint's checksum in DVC.
"""

from __future__ import annotations

import contextlib
import csv
import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunStatus, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from qdformer import digests
from qdformer.settings import Settings

CHAMPION = "champion"
SELECTED_BY = "clean/miou_dataset"
"""The metric by which a new version must beat the champion."""

UNFINISHED, ANY = "attributes.status != 'FINISHED'", "attributes.status != ''"

for _name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
    logging.getLogger(_name).setLevel(logging.WARNING)


def tracking_uri() -> str:
    """The store's address, the same from every working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def experiment_name(settings: Settings) -> str:
    """Runs of one task on one data set are one experiment, and its checkpoints the versions of one registered model."""
    binary = settings.train.task == "avs" and settings.download.dataset not in ("s4", "ms3")  # which have no other
    return f"qdformer-{settings.download.dataset}{'-avs' if binary else ''}"


@contextlib.contextmanager
def training_run(
    settings: Settings, provenance: Mapping[str, str], name: str = "train", parent: str | None = None
) -> Iterator[str]:
    """Record a training for the block, with the machine's use of CPU, memory and GPUs; yield the run's id.

    `provenance` becomes tags. The run ends as FINISHED, as FAILED on an error, or as KILLED when it is
    interrupted. An unfinished run of the same settings, data, code and `parent` is gone on with.
    """
    client = MlflowClient(tracking_uri())
    params = _flatten(settings.model_dump(exclude={"sweep"}))
    identity = digests.identity([json.dumps(params, sort_keys=True), *_inputs(provenance), parent])
    run_id = _begin(
        client, experiment_name(settings), name, {**provenance, "identity": identity}, parent, again=UNFINISHED
    )
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    monitor = SystemMetricsMonitor(run_id, sampling_interval=5, resume_logging=True, tracking_uri=tracking_uri())
    monitor.start()
    try:
        with _ended(client, run_id):
            yield run_id
    finally:
        monitor.finish()


@contextlib.contextmanager
def parent_run(settings: Settings, provenance: Mapping[str, str], name: str) -> Iterator[str]:
    """Record a group of runs for the block; yield the id under which they are nested.

    A group of the same settings, data and code is gone on with, finished or not.
    """
    client = MlflowClient(tracking_uri())
    identity = digests.identity([settings.model_dump_json(), *_inputs(provenance), name])
    run_id = _begin(client, experiment_name(settings), name, {**provenance, "identity": identity}, None, again=ANY)
    with _ended(client, run_id):
        yield run_id


def log_epoch(uri: str, run_id: str, figures: Mapping[str, float]) -> None:
    """Log one epoch's figures, at the step `figures["epoch"]`. For workers: the address is given, not looked up."""
    named = {f"train/{name}": value for name, value in figures.items() if name != "epoch"}
    _log_metrics(MlflowClient(uri), run_id, named, int(figures["epoch"]))


def tag(run_id: str, **tags: str) -> None:
    """Set tags on a run."""
    client = MlflowClient(tracking_uri())
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def log_files(run_id: str, files: Path) -> None:
    """Keep a file, or all files below a folder, with a run."""
    client = MlflowClient(tracking_uri())
    if files.is_dir():
        client.log_artifacts(run_id, str(files))
    else:
        client.log_artifact(run_id, str(files))


def log_evaluation(
    reports: Path,
    settings: Settings,
    provenance: Mapping[str, str],
    checkpoint: Path,
    *,
    name: str = "train",
    parent: str | None = None,
) -> str:
    """Record an evaluation with the run that trained `checkpoint`; return the run's id.

    `reports` holds `metrics/{condition}.json`, each figure of which becomes the metric
    `{condition}/{figure}`, tables and pictures. Where the store knows no such run (the checkpoint
    came from elsewhere), one is written from the settings and the `history.csv` beside the
    checkpoint. What has been recorded is not recorded twice.
    """
    client = MlflowClient(tracking_uri())
    experiment, checkpoint_sha256 = experiment_name(settings), digests.file_sha256(checkpoint)
    metrics = sorted((reports / "metrics").glob("*.json"))
    evaluation_sha256 = digests.identity(map(digests.file_sha256, metrics))
    run = find_run(experiment, checkpoint_sha256, parent)
    if run and run.data.tags.get("evaluation_sha256") == evaluation_sha256:
        return run.info.run_id
    if run:
        run_id = run.info.run_id
    else:
        run_id = _begin(client, experiment, name, {**provenance, "recorded": "from files"}, parent)
        params = _flatten(settings.model_dump(exclude={"sweep"}))
        client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
        with open(checkpoint.with_name("history.csv"), encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                log_epoch(tracking_uri(), run_id, {key: float(value) for key, value in row.items() if value})
        client.set_tag(run_id, "checkpoint_sha256", checkpoint_sha256)
        client.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
    for path in metrics:
        figures = json.loads(path.read_text(encoding="utf-8"))
        _log_metrics(client, run_id, {f"{path.stem}/{key}": value for key, value in figures.items()})
    client.log_artifacts(run_id, str(reports), "reports")
    client.set_tag(run_id, "evaluation_sha256", evaluation_sha256)
    return run_id


def find_run(experiment: str, checkpoint_sha256: str, parent: str | None = None) -> Run | None:
    """The newest run under `parent` (or under none) that made a checkpoint, or None."""
    client = MlflowClient(tracking_uri())
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    condition = f"tags.checkpoint_sha256 = '{checkpoint_sha256}'"
    runs = client.search_runs([found.experiment_id], condition, order_by=["attributes.start_time DESC"])
    return next((run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent), None)


def find_version(model: str, checkpoint_sha256: str) -> ModelVersion | None:
    """The registered version of a checkpoint, or None."""
    versions = MlflowClient(tracking_uri()).search_model_versions(f"name = '{model}'")
    return next((version for version in versions if version.tags.get("checkpoint_sha256") == checkpoint_sha256), None)


def find_champion(model: str) -> ModelVersion | None:
    """The version that carries the alias `champion`, or None."""
    try:
        return MlflowClient(tracking_uri()).get_model_version_by_alias(model, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def register(model: str, run_id: str, checkpoint_sha256: str, source: str) -> ModelVersion:
    """Register a checkpoint as a version of `model` that points at `source`, outside MLflow.

    A checkpoint has one version, however often this is called.
    """
    if version := find_version(model, checkpoint_sha256):
        return version
    client = MlflowClient(tracking_uri())
    if not client.search_registered_models(f"name = '{model}'"):
        client.create_registered_model(model)
    run = client.get_run(run_id)
    tags = {
        "checkpoint_sha256": checkpoint_sha256,
        "data_digest": run.data.tags.get("data_digest", ""),
        SELECTED_BY: str(run.data.metrics[SELECTED_BY]),
    }
    return client.create_model_version(model, source, run_id, tags=tags)


def promote(model: str, version: ModelVersion) -> str:
    """Give `version` the alias `champion` if its test mIoU is better than the champion's; return the verdict.

    The verdict is kept as the version's tag `judged`, last of all: without it this is to be repeated.
    """
    client = MlflowClient(tracking_uri())
    champion = find_champion(model)
    score = float(version.tags[SELECTED_BY])
    if champion is None or str(champion.version) == str(version.version):
        verdict = f"champion with {SELECTED_BY} {score:.3f}"
    else:
        best = float(champion.tags[SELECTED_BY])
        verdict = f"{'champion' if score > best else 'not champion'}: {SELECTED_BY} {score:.3f}, "
        verdict += f"version {champion.version} has {best:.3f}"
        if version.tags["data_digest"] != champion.tags["data_digest"]:
            verdict += " on other data"
    if verdict.startswith(CHAMPION):
        client.set_registered_model_alias(model, CHAMPION, version.version)
    client.set_model_version_tag(model, version.version, "judged", verdict)
    return verdict


def _begin(
    client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str], parent: str | None, again: str = ""
) -> str:
    """A new run; or the newest one with the same tag `identity`, if it also meets the condition `again`."""
    experiment_id = _experiment_id(client, experiment)
    here = {"host": socket.gethostname(), "process": str(os.getpid())}
    _bury_the_dead(client, experiment_id, here["host"])
    if again:
        for run in client.search_runs(
            [experiment_id], f"tags.identity = '{tags['identity']}' and {again}", max_results=1
        ):
            client.update_run(run.info.run_id, RunStatus.to_string(RunStatus.RUNNING))
            client.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in {**tags, **here}.items()])
            return run.info.run_id
    nested = {"mlflow.parentRunId": parent} if parent else {}
    return client.create_run(experiment_id, run_name=name, tags={**tags, **here, **nested}).info.run_id


@contextlib.contextmanager
def _ended(client: MlflowClient, run_id: str) -> Iterator[None]:
    status = RunStatus.KILLED
    try:
        yield
        status = RunStatus.FINISHED
    except Exception:
        status = RunStatus.FAILED
        raise
    finally:
        client.set_terminated(run_id, RunStatus.to_string(status))


def _bury_the_dead(client: MlflowClient, experiment_id: str, host: str) -> None:
    """A process killed outright cannot say so: its runs are marked KILLED here."""
    for run in client.search_runs([experiment_id], f"attributes.status = 'RUNNING' and tags.host = '{host}'"):
        process = int(run.data.tags.get("process", -1))
        if not psutil.pid_exists(process):
            client.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def _experiment_id(client: MlflowClient, name: str) -> str:
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    address = urlsplit(tracking_uri())
    files = None
    if address.scheme == "sqlite":
        files = (Path(unquote(address.path[1:])).parent / "mlartifacts" / name).absolute().as_uri()
    return client.create_experiment(name, artifact_location=files)


def _log_metrics(client: MlflowClient, run_id: str, figures: Mapping[str, float | None], step: int = 0) -> None:
    now = int(time.time() * 1000)
    known = {name: float(value) for name, value in figures.items() if value is not None}
    client.log_batch(run_id, [Metric(name, value, now, step) for name, value in known.items()])


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _inputs(provenance: Mapping[str, str]) -> list[str | None]:
    return [provenance.get("data_digest"), provenance.get("code_digest")]
