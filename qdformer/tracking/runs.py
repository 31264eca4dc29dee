"""The record of what was run, in MLflow: one run per training, its evaluation in the same run.

The store is named by `MLFLOW_TRACKING_URI`; without it, it is `mlflow.db` in the working directory.
Beside an SQLite store the files are kept in `mlartifacts/`; a server decides for itself. Weights
never come here: a registered version points at the checkpoint's checksum in DVC.

A store that is locked or away is waited for, `RETRY_SECONDS` seconds a call. A training does not end for it: what
could not be recorded stays in the files beside the checkpoint, and is recorded from them later.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")  # of a server, half a minute; then `_Store` goes on

import mlflow.data
import pandas
import psutil
from mlflow import MlflowClient
from mlflow.data.sources import LocalArtifactDatasetSource
from mlflow.entities import DatasetInput, InputTag, Metric, Param, Run, RunStatus, RunTag
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL, MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NOTE
from sqlalchemy.exc import OperationalError

from qdformer.config.settings import Settings
from qdformer.data.manifest import read_manifest, table_path
from qdformer.evaluation.evaluate import SCORES
from qdformer.metrics.conventions import PROTOCOLS, evaluation_setup
from qdformer.tracking import environment, views
from qdformer.utils import digests
from qdformer.utils.errors import InputError

CHAMPION = "champion"
SELECTION_METRIC = "clean/miou_dataset"
"""The metric by which a new version must beat the champion."""
RETRY_SECONDS = 60.0
"""Seconds for which a call to a store that is locked or away is repeated."""

UNFINISHED, ANY = "attributes.status != 'FINISHED'", "attributes.status != ''"
_AWAY = ("TEMPORARILY_UNAVAILABLE", "INTERNAL_ERROR")  # a locked database; a server that is gone

for _name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class TrackingError(InputError):
    """The store cannot be reached, or the record does not allow what was asked; the message says which."""


class _Store:
    """An `MlflowClient` whose calls are repeated while the store is locked or away; in the end a `TrackingError`."""

    def __init__(self, uri: str | None = None) -> None:
        self._uri = uri or tracking_uri()
        self._client = self._patiently(lambda: MlflowClient(self._uri))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._client, name)
        return lambda *args, **named: self._patiently(lambda: call(*args, **named))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return call()
            except MlflowException as error:
                if error.error_code not in _AWAY:
                    raise
                problem = error
            except OperationalError as error:  # while a store is opened
                problem = error
            if time.monotonic() > deadline:
                reason = str(problem).strip().splitlines()[0]
                raise TrackingError(f"{self._uri}: the MLflow store is locked or away ({reason})") from problem
            time.sleep(0.5)


def tracking_uri() -> str:
    """The store's address, the same from every working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def experiment_name(settings: Settings) -> str:
    """Runs of one task on one data set are one experiment, and its checkpoints the versions of one registered model."""
    binary = settings.train.task == "avs" and settings.download.dataset not in ("s4", "ms3")  # which have no other
    return f"qdformer-{settings.download.dataset}{'-avs' if binary else ''}"


@contextlib.contextmanager
def training_run(
    settings: Settings, provenance: Mapping[str, str], dataset: Path, name: str = "train", parent: str | None = None
) -> Iterator[str]:
    """Record a training for the block, with the machine and its use of CPU, memory and GPUs; yield the run's id.

    `provenance` becomes tags, the training split of the data set in the folder `dataset` an input. The run ends as
    FINISHED, as FAILED on an error, or as KILLED when it is interrupted; the metric `seconds/train` is the time of
    all tries together. An unfinished run of the same settings, data, code and `parent` is gone on with. Raises
    `TrackingError` if the store cannot be reached at the start.
    """
    store = _Store()
    params = _flatten(settings.model_dump(exclude={"sweep"}))
    identity = digests.short_digest([json.dumps(params, sort_keys=True), *_inputs(provenance), parent])
    tags = {
        **provenance,
        **_prefixed("machine", environment.describe_machine()),
        **_conventions(settings),
        "identity": identity,
    }
    run_id = _begin(store, experiment_name(settings), name, tags, parent, again=UNFINISHED)
    _log_settings(store, run_id, settings, "train")
    _log_input(store, run_id, settings, provenance, dataset, "train", "training")
    before = store.get_run(run_id).data.metrics.get("seconds/train", 0.0)
    started = time.monotonic()
    monitor = SystemMetricsMonitor(run_id, sampling_interval=5, resume_logging=True, tracking_uri=tracking_uri())
    monitor.start()
    try:
        with _ended(store, run_id):
            try:
                yield run_id
            finally:
                with _warn_if_unreachable("the time that the training took is not recorded"):
                    _log_metrics(store, run_id, {"seconds/train": before + time.monotonic() - started})
    finally:
        monitor.finish()


@contextlib.contextmanager
def parent_run(settings: Settings, provenance: Mapping[str, str], name: str) -> Iterator[str]:
    """Record a group of runs for the block; yield the id under which they are nested.

    A group of the same settings, data and code is gone on with, finished or not.
    """
    store = _Store()
    identity = digests.short_digest([settings.model_dump_json(), *_inputs(provenance), name])
    tags = {
        **provenance,
        **_prefixed("machine", environment.describe_machine()),
        **_conventions(settings),
        "identity": identity,
    }
    run_id = _begin(store, experiment_name(settings), name, tags, None, again=ANY)
    with _ended(store, run_id):
        yield run_id


def log_epoch(uri: str, run_id: str, figures: Mapping[str, float]) -> None:
    """Log one epoch's figures, at the step `figures["epoch"]`. For workers: the address is given, not looked up.

    A store that cannot be reached stops no training: `finish_training` sees to what is missing.
    """
    with _warn_if_unreachable(f"epoch {figures['epoch']:.0f} is recorded when the training ends"):
        _log_epochs(_Store(uri), run_id, [figures])


def finish_training(run_id: str, checkpoint: Path) -> None:
    """Mark the run as the one that made `checkpoint`, with all epochs of the `history.csv` beside it.

    Where the store cannot be reached, the checkpoint gets a run of its own with its evaluation.
    """
    with _warn_if_unreachable("the checkpoint is recorded with its evaluation"):
        store = _Store()
        known = {metric.step for metric in store.get_metric_history(run_id, "train/total")}
        _log_epochs(store, run_id, [row for row in _history(checkpoint) if int(row["epoch"]) not in known])
        store.set_tag(run_id, "checkpoint_sha256", digests.file_sha256(checkpoint))


def log_files(run_id: str, files: Path) -> None:
    """Keep a file, or all files below a folder, with a run."""
    store = _Store()
    if files.is_dir():
        store.log_artifacts(run_id, str(files))
    else:
        store.log_artifact(run_id, str(files))


def log_evaluation(
    reports: Path,
    settings: Settings,
    provenance: Mapping[str, str],
    checkpoint: Path,
    dataset: Path,
    *,
    name: str = "train",
    parent: str | None = None,
    seconds: float | None = None,
) -> str:
    """Record an evaluation with the run that trained `checkpoint`; return the run's id.

    `reports` holds `metrics/{condition}.json`, each figure of which becomes the metric
    `{condition}/{figure}`, tables and pictures; `dataset` the data set whose split was measured, in `seconds`. Where
    the store knows no such run (the checkpoint came from elsewhere), one is written from the settings and the
    `history.csv` beside the checkpoint. What has been recorded is not recorded twice. Tags that begin with
    `evaluation.` say what the figures were measured by, for that may be other code or another machine than trained.
    """
    store = _Store()
    experiment, checkpoint_sha256 = experiment_name(settings), digests.file_sha256(checkpoint)
    metrics = sorted((reports / "metrics").glob("*.json"))
    evaluation_sha256 = digests.short_digest(map(digests.file_sha256, metrics))
    run = find_run(experiment, checkpoint_sha256, parent)
    if run is None:
        tags = {**provenance, **_conventions(settings), "recorded": "from files"}
        run_id = _begin(store, experiment, name, tags, parent)
        _log_settings(store, run_id, settings, "train")
        _log_input(store, run_id, settings, provenance, dataset, "train", "training")
        _log_epochs(store, run_id, _history(checkpoint))
        store.set_tag(run_id, "checkpoint_sha256", checkpoint_sha256)
    else:
        run_id = run.info.run_id
    if run is None or run.info.status != "FINISHED":  # a complete checkpoint is a finished training
        store.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
    if lock := provenance.get("dvc_lock_digest"):  # DVC writes its lock after each stage: the last one counts
        store.set_tag(run_id, "dvc_lock_digest", lock)
    if run and run.data.tags.get("evaluation_sha256") == evaluation_sha256:
        return run_id
    for path in metrics:
        figures = json.loads(path.read_text(encoding="utf-8"))
        _log_metrics(store, run_id, {f"{path.stem}/{key}": value for key, value in figures.items()})
    if seconds is not None:
        _log_metrics(store, run_id, {"seconds/evaluate": seconds})
    _save_scores_view(store, experiment)
    _log_input(store, run_id, settings, provenance, dataset, settings.evaluate.split, "testing")
    _log_settings(store, run_id, settings, "evaluate")
    store.log_artifacts(run_id, str(reports), "reports")
    about = {**_prefixed("machine", environment.describe_machine()), **provenance, "seed": str(settings.evaluate.seed)}
    tags = {**_conventions(settings), **_prefixed("evaluation", about), "evaluation_sha256": evaluation_sha256}
    store.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return run_id


def find_run(experiment: str, checkpoint_sha256: str, parent: str | None = None) -> Run | None:
    """The newest run under `parent` (or under none) that made a checkpoint, or None."""
    store = _Store()
    found = store.get_experiment_by_name(experiment)
    if found is None:
        return None
    condition = f"tags.checkpoint_sha256 = '{checkpoint_sha256}'"
    runs = store.search_runs([found.experiment_id], condition, order_by=["attributes.start_time DESC"])
    return next((run for run in runs if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == parent), None)


def save_comparison(parent: str, rows: Sequence[str], metrics: Sequence[str], name: str, table: str) -> str:
    """Save a view of the runs `rows` below `parent` in the dashboard; return its address below the dashboard's.

    `table`, in Markdown, becomes the description of the parent run, below links to the view and to MLflow's own
    page of comparison. The same parent's view is replaced. Raises `TrackingError` if a row has no run.
    """
    store = _Store()
    experiment_id = store.get_run(parent).info.experiment_id
    children = store.search_runs(
        [experiment_id], f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent}'", order_by=["attributes.start_time DESC"]
    )
    newest = {run.info.run_name: run.info.run_id for run in reversed(children)}
    if missing := [row for row in rows if row not in newest]:
        raise TrackingError(f"run {parent}: no run named {', '.join(missing)} below it; the sweep writes one a row")
    for place, row in enumerate(rows, start=1):
        store.set_tag(newest[row], views.ROW_TAG, f"{place:03}")
    view = views.comparison_view(name, parent, metrics, int(time.time() * 1000))
    store.set_experiment_tag(experiment_id, views.VIEW_TAG + parent, view)
    page = views.view_path(experiment_id, parent)
    compared = views.compare_path(experiment_id, [newest[row] for row in rows])
    note = f"[Charts and table of the rows]({page}) · [MLflow's comparison of the runs]({compared})\n\n{table}"
    store.set_tag(parent, MLFLOW_RUN_NOTE, note)
    return page


def _save_scores_view(store: _Store, name: str) -> None:
    """A view of all runs with the scores on clean sound as columns; one that is there is the user's."""
    experiment = store.get_experiment_by_name(name)
    if (key := views.VIEW_TAG + views.SCORES_VIEW) not in experiment.tags:
        view = views.scores_view([f"clean/{score}" for score in SCORES], int(time.time() * 1000))
        store.set_experiment_tag(experiment.experiment_id, key, view)


def runs_url(experiment: str) -> str:
    """The address of the runs of an experiment with their scores, on the dashboard of this store."""
    return dashboard_url() + views.runs_path(_Store().get_experiment_by_name(experiment).experiment_id)


def dashboard_url() -> str:
    """Where the dashboard on this store is: the server's address, or that of `make ui`."""
    uri = tracking_uri()
    return f"{uri.rstrip('/')}/" if urlsplit(uri).scheme in ("http", "https") else views.local_url()


def find_version(model: str, checkpoint_sha256: str) -> ModelVersion | None:
    """The registered version of a checkpoint, or None."""
    versions = _Store().search_model_versions(f"name = '{model}'")
    return next((version for version in versions if version.tags.get("checkpoint_sha256") == checkpoint_sha256), None)


def find_champion(model: str) -> ModelVersion | None:
    """The version that carries the alias `champion`, or None."""
    try:
        return _Store().get_model_version_by_alias(model, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def register(model: str, run_id: str, checkpoint_sha256: str, source: str, card: str) -> ModelVersion:
    """Register a checkpoint as a version of `model` that points at `source`, outside MLflow.

    `card`, in Markdown, becomes the version's description and the run's file `model_card.md`. A checkpoint has one
    version, however often this is called. Raises `TrackingError` if the run did not finish or was not evaluated.
    """
    if version := find_version(model, checkpoint_sha256):
        return version
    store = _Store()
    run = store.get_run(run_id)
    if run.info.status != "FINISHED" or SELECTION_METRIC not in run.data.metrics:
        raise TrackingError(
            f"run {run_id}: is {run.info.status} with{'' if SELECTION_METRIC in run.data.metrics else 'out'} "
            f"{SELECTION_METRIC}; "
            "only a finished run that was evaluated can be registered"
        )
    if not store.search_registered_models(f"name = '{model}'"):
        store.create_registered_model(model)
    tags = {
        "checkpoint_sha256": checkpoint_sha256,
        "data_digest": run.data.tags.get("data_digest", ""),
        SELECTION_METRIC: str(run.data.metrics[SELECTION_METRIC]),
        MLFLOW_MODEL_IS_EXTERNAL: "true",
    }
    store.log_text(run_id, card, "model_card.md")
    return store.create_model_version(model, source, run_id, tags=tags, description=card)


def promote(model: str, version: ModelVersion) -> str:
    """Give `version` the alias `champion` if its test mIoU is better than the champion's; return the verdict.

    The verdict is kept as the version's tag `judged`, last of all: without it this is to be repeated.
    """
    store = _Store()
    champion = find_champion(model)
    score = float(version.tags[SELECTION_METRIC])
    if champion is None or str(champion.version) == str(version.version):
        verdict = f"champion with {SELECTION_METRIC} {score:.3f}"
    else:
        best = float(champion.tags[SELECTION_METRIC])
        verdict = f"{'champion' if score > best else 'not champion'}: {SELECTION_METRIC} {score:.3f}, "
        verdict += f"version {champion.version} has {best:.3f}"
        if version.tags["data_digest"] != champion.tags["data_digest"]:
            verdict += " on other data"
    if verdict.startswith(CHAMPION):
        store.set_registered_model_alias(model, CHAMPION, version.version)
    store.set_model_version_tag(model, version.version, "judged", verdict)
    return verdict


def _begin(
    store: _Store, experiment: str, name: str, tags: Mapping[str, str], parent: str | None, again: str = ""
) -> str:
    """A new run; or the newest one with the same tag `identity`, if it also meets the condition `again`."""
    experiment_id = _experiment_id(store, experiment)
    here = {"host": socket.gethostname(), "process": _process(os.getpid())}
    _end_runs_of_dead_processes(store, experiment_id, here["host"])
    if again:
        for run in store.search_runs(
            [experiment_id], f"tags.identity = '{tags['identity']}' and {again}", max_results=1
        ):
            store.update_run(run.info.run_id, RunStatus.to_string(RunStatus.RUNNING))
            store.log_batch(run.info.run_id, tags=[RunTag(key, value) for key, value in {**tags, **here}.items()])
            return run.info.run_id
    nested = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
    return store.create_run(experiment_id, run_name=name, tags={**tags, **here, **nested}).info.run_id


@contextlib.contextmanager
def _ended(store: _Store, run_id: str) -> Iterator[None]:
    status = RunStatus.KILLED
    try:
        yield
        status = RunStatus.FINISHED
    except Exception:
        status = RunStatus.FAILED
        raise
    finally:
        with _warn_if_unreachable(f"run {run_id} is marked when the next one begins"):
            store.set_terminated(run_id, RunStatus.to_string(status))


@contextlib.contextmanager
def _warn_if_unreachable(remedy: str) -> Iterator[None]:
    """Tell of a store that cannot be reached, and go on: what the block records is worth less than the work."""
    try:
        yield
    except TrackingError as error:
        print(f"warning: {error}; {remedy}", file=sys.stderr, flush=True)


def _end_runs_of_dead_processes(store: _Store, experiment_id: str, host: str) -> None:
    """A process killed outright cannot say so: its runs are marked KILLED here."""
    for run in store.search_runs([experiment_id], f"attributes.status = 'RUNNING' and tags.host = '{host}'"):
        process = run.data.tags.get("process", "")
        if process != _process(int(process.partition(" ")[0] or -1)):
            store.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.KILLED))


def _process(number: int) -> str:
    """A process by its number and the second in which it began, for numbers are used again; '' if there is none."""
    try:
        return f"{number} {psutil.Process(number).create_time():.0f}"
    except (psutil.NoSuchProcess, ValueError):
        return ""


def _experiment_id(store: _Store, name: str) -> str:
    if found := store.get_experiment_by_name(name):
        return found.experiment_id
    address = urlsplit(tracking_uri())
    files = None
    if address.scheme == "sqlite":
        files = (Path(unquote(address.path[1:])).parent / "mlartifacts" / name).absolute().as_uri()
    kind = {"mlflow.experimentKind": "custom_model_development"}  # the dashboard then shows what trainings have
    return store.create_experiment(name, artifact_location=files, tags=kind)


def _log_settings(store: _Store, run_id: str, settings: Settings, stage: str) -> None:
    """As parameters, which can be compared but are set once, and as a file for the stage."""
    if stage == "train":
        params = _flatten(settings.model_dump(exclude={"sweep"}))
        store.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    store.log_dict(run_id, settings.model_dump(), f"settings/{stage}.yaml")


def _log_input(
    store: _Store,
    run_id: str,
    settings: Settings,
    provenance: Mapping[str, str],
    dataset: Path,
    split: str,
    context: str,
) -> None:
    """One split of the data set as an input of the run: its list of clips, and the digest of all its files."""
    clips = read_manifest(dataset)
    clips = clips[clips["split"] == split][["uid", "subset", "split", "classes", "frames", "labeled", "unseen"]]
    data = mlflow.data.from_pandas(
        clips.assign(classes=clips["classes"].map("_".join)).astype({"frames": float, "labeled": float}),
        source=LocalArtifactDatasetSource(str(table_path(dataset).absolute())),
        name=f"{settings.download.dataset}-{split}",
        digest=provenance["dataset_digest"],
    )
    tags = [InputTag("mlflow.data.context", context)]
    store.log_inputs(run_id, datasets=[DatasetInput(data._to_mlflow_entity(), tags)])


def _history(checkpoint: Path) -> list[dict[str, float]]:
    """The figures of every epoch, from the `history.csv` beside the checkpoint; an empty cell is no figure."""
    rows = pandas.read_csv(checkpoint.with_name("history.csv")).to_dict("records")
    return [{key: value for key, value in row.items() if not pandas.isna(value)} for row in rows]


def _log_epochs(store: _Store, run_id: str, history: Sequence[Mapping[str, float]]) -> None:
    for figures in history:
        named = {f"train/{name}": value for name, value in figures.items() if name != "epoch"}
        _log_metrics(store, run_id, named, int(figures["epoch"]))


def _log_metrics(store: _Store, run_id: str, figures: Mapping[str, float | None], step: int = 0) -> None:
    now = int(time.time() * 1000)
    known = {name: float(value) for name, value in figures.items() if value is not None}
    store.log_batch(run_id, [Metric(name, value, now, step) for name, value in known.items()])


def _conventions(settings: Settings) -> dict[str, str]:
    return _prefixed("protocol", {**PROTOCOLS, **evaluation_setup(settings)})


def _prefixed(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _inputs(provenance: Mapping[str, str]) -> list[str | None]:
    return [provenance.get("data_digest"), provenance.get("code_digest")]
