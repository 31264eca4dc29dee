"""MLflow runs: one run per training, with its evaluation in the same run; a sweep is a parent run of its rows.

A training does not fail because the store is unreachable: what could not be recorded is in the files beside the
checkpoint, and is recorded from them later.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow.data
import pandas
from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]  # made at run time
from mlflow.entities import DatasetInput, InputTag, Run, RunStatus
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from qdformer.data.manifest import read_manifest, table_path
from qdformer.metrics.conventions import PROTOCOLS, evaluation_setup
from qdformer.tracking.environment import describe_machine
from qdformer.tracking.store import Store, warn_if_unreachable
from qdformer.tracking.views import save_scores_view
from qdformer.utils import digests
from qdformer.utils.locks import held_lock, is_locked
from qdformer.utils.processes import is_alive, process_identity

if TYPE_CHECKING:
    from qdformer.config.settings import Settings

_LOCKS = "locks"
"""The tag of a run that names the folder of its lock."""
_NOT_FINISHED, _ANY_STATUS = "attributes.status != 'FINISHED'", "attributes.status != ''"


def experiment_name(settings: Settings) -> str:
    """The experiment of all runs of one task on one data set, and the registered model of their checkpoints."""
    only_binary = settings.download.dataset in ("s4", "ms3")
    binary = settings.train.task == "avs" and not only_binary
    return f"qdformer-{settings.download.dataset}{'-avs' if binary else ''}"


def run_name(settings: Settings, provenance: Mapping[str, str], part: str = "") -> str:
    """The name of a run: its preset (the data set for the default settings), `part` of a sweep, and its seed."""
    preset = provenance.get("preset", "default")
    names = (settings.download.dataset if preset == "default" else preset, part, f"seed {settings.train.seed}")
    return " ".join(filter(None, names))


@contextlib.contextmanager
def training_run(
    settings: Settings,
    provenance: Mapping[str, str],
    dataset: Path,
    name: str | None = None,
    parent: str | None = None,
) -> Iterator[str]:
    """Record a training for the duration of the block, with the machine's use of CPU, memory and GPUs; yield the id.

    The default name is `run_name`. `provenance` becomes the run's tags, the training split of the data set in the
    folder `dataset` its input. The run ends as FINISHED, as FAILED after an error, or as KILLED after an interruption.
    An unfinished run of the same settings, data, code and `parent` is resumed; the metric `seconds/train` is the sum
    over all attempts. Raises `TrackingError` if the store cannot be reached at the start.
    """
    store = Store()
    params = json.dumps(_params(settings), sort_keys=True)
    tags = _run_tags(settings, provenance, [params, *_inputs(provenance), parent])
    run_id = _start_run(store, settings, name or run_name(settings, provenance), tags, parent, _NOT_FINISHED)
    _log_settings(store, run_id, settings, "train")
    _log_input(store, run_id, settings, provenance, dataset, "train", "training")
    seconds_before = store.get_run(run_id).data.metrics.get("seconds/train", 0.0)
    started = time.monotonic()
    monitor = SystemMetricsMonitor(run_id, sampling_interval=5, resume_logging=True, tracking_uri=store.uri)
    monitor.start()
    try:
        with _ended(store, run_id):
            try:
                yield run_id
            finally:
                seconds = seconds_before + time.monotonic() - started
                with warn_if_unreachable("the duration of the training is not recorded"):
                    store.log_metrics(run_id, {"seconds/train": seconds})
    finally:
        monitor.finish()


@contextlib.contextmanager
def parent_run(
    settings: Settings, provenance: Mapping[str, str], name: str, identity: Iterable[str] | None = None
) -> Iterator[str]:
    """Record a group of runs for the duration of the block; yield the id of their parent.

    A group of the same `identity` (default: the settings), data, code and name is resumed, even if it has finished.
    """
    store = Store()
    identity = [settings.model_dump_json()] if identity is None else identity
    tags = _run_tags(settings, provenance, [*identity, *_inputs(provenance), name])
    run_id = _start_run(store, settings, name, tags, parent=None, resume_if=_ANY_STATUS)
    with _ended(store, run_id):
        yield run_id


def log_epoch(uri: str, run_id: str, metrics: Mapping[str, float]) -> None:
    """Log the metrics of one epoch at the step `metrics["epoch"]`, in the store at `uri`: workers have no other.

    If the store cannot be reached, `finish_training` logs the epoch later.
    """
    with warn_if_unreachable(f"epoch {metrics['epoch']:.0f} is recorded when the training ends"):
        _log_epochs(Store(uri), run_id, [metrics])


def finish_training(run_id: str, checkpoint: Path) -> None:
    """Record that the run made `checkpoint`, and those epochs of the `history.csv` beside it that are missing.

    If the store cannot be reached, `log_evaluation` records the checkpoint in another run.
    """
    with warn_if_unreachable("the checkpoint is recorded with its evaluation"):
        store = Store()
        known = store.metric_steps(run_id, "train/total")
        _log_epochs(store, run_id, [row for row in _history(checkpoint) if int(row["epoch"]) not in known])
        store.set_tags(run_id, {"checkpoint_sha256": digests.file_sha256(checkpoint)})


def log_tags(run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, such as the number of workers of a training."""
    with warn_if_unreachable(f"the tags {', '.join(tags)} are not recorded"):
        Store().set_tags(run_id, tags)


def log_files(run_id: str, files: Path) -> None:
    """Store a file, or all files below a folder, with a run."""
    store = Store()
    if files.is_dir():
        store.log_folder(run_id, files)
    else:
        store.log_file(run_id, files)


def log_evaluation(
    reports: Path,
    settings: Settings,
    provenance: Mapping[str, str],
    checkpoint: Path,
    dataset: Path,
    *,
    name: str | None = None,
    parent: str | None = None,
    seconds: float | None = None,
) -> str:
    """Record an evaluation in the run that trained `checkpoint`; return the run's id.

    `reports` holds `metrics/CONDITION.json`, whose entries become the metrics `CONDITION/METRIC`, and tables and
    figures, which become files of the run. `dataset` is the data set whose split was evaluated, in `seconds`. If the
    store knows no run of the checkpoint, which may come from another machine, one is created from the settings and
    the `history.csv` beside the checkpoint. An evaluation that is already recorded is not recorded again. Tags with
    the prefix `evaluation.` describe the code and the machine of the evaluation, which may differ from the training's.
    """
    store = Store()
    files = sorted((reports / "metrics").glob("*.json"))
    evaluation_sha256 = digests.short_digest(map(digests.file_sha256, files))
    run_id = _checkpoint_run(store, settings, provenance, checkpoint, dataset, name, parent)
    if lock := provenance.get("dvc_lock_digest"):  # DVC rewrites its lock after each stage: the last one counts
        store.set_tags(run_id, {"dvc_lock_digest": lock})
    if store.get_run(run_id).data.tags.get("evaluation_sha256") == evaluation_sha256:
        return run_id
    for path in files:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        store.log_metrics(run_id, {f"{path.stem}/{key}": value for key, value in metrics.items()})
    if seconds is not None:
        store.log_metrics(run_id, {"seconds/evaluate": seconds})
    save_scores_view(store, experiment_name(settings))
    _log_input(store, run_id, settings, provenance, dataset, settings.evaluate.split, "testing")
    _log_settings(store, run_id, settings, "evaluate")
    store.log_folder(run_id, reports, "reports")
    origin = {**_with_prefix("machine", describe_machine()), **provenance, "seed": str(settings.evaluate.seed)}
    tags = {**_protocol_tags(settings), **_with_prefix("evaluation", origin)}
    store.set_tags(run_id, {**tags, "evaluation_sha256": evaluation_sha256})
    return run_id


def find_run(experiment: str, checkpoint_sha256: str, parent: str | None = None) -> Run | None:
    """The newest run below `parent` (or without a parent) that made a checkpoint, or None."""
    store = Store()
    found = store.find_experiment(experiment)
    if found is None:
        return None
    condition = f"tags.checkpoint_sha256 = '{checkpoint_sha256}'"
    runs = store.search_runs(found.experiment_id, condition)
    return next((run for run in runs if run.data.tags.get(MLFLOW_PARENT_RUN_ID) == parent), None)


def _checkpoint_run(
    store: Store,
    settings: Settings,
    provenance: Mapping[str, str],
    checkpoint: Path,
    dataset: Path,
    name: str | None,
    parent: str | None,
) -> str:
    """The id of the run of a checkpoint, created from the files if there is none. A complete checkpoint ends it."""
    checkpoint_sha256 = digests.file_sha256(checkpoint)
    run = find_run(experiment_name(settings), checkpoint_sha256, parent)
    if run is None:
        tags = {**provenance, **_protocol_tags(settings), "recorded": "from files"}
        run_id = _start_run(store, settings, name or run_name(settings, provenance), tags, parent)
        _log_settings(store, run_id, settings, "train")
        _log_input(store, run_id, settings, provenance, dataset, "train", "training")
        _log_epochs(store, run_id, _history(checkpoint))
        store.set_tags(run_id, {"checkpoint_sha256": checkpoint_sha256})
    else:
        run_id = run.info.run_id
    if run is None or run.info.status != "FINISHED":
        store.end_run(run_id, RunStatus.FINISHED)
    return run_id


def _start_run(
    store: Store,
    settings: Settings,
    name: str,
    tags: Mapping[str, str],
    parent: str | None,
    resume_if: str | None = None,
) -> str:
    """Create a run, or resume the newest one with the same tag `identity` that meets the condition `resume_if`."""
    experiment_id = store.get_or_create_experiment(experiment_name(settings))
    process = {"host": socket.gethostname(), "process": process_identity(os.getpid()), _LOCKS: str(_lock_folder())}
    tags = {**tags, **process}
    _end_runs_of_dead_processes(store, experiment_id)
    if resume_if:
        for run in store.search_runs(experiment_id, f"tags.identity = '{tags['identity']}' and {resume_if}")[:1]:
            store.set_running(run.info.run_id)
            store.set_tags(run.info.run_id, tags)
            return run.info.run_id
    if parent:
        tags[MLFLOW_PARENT_RUN_ID] = parent
    return store.create_run(experiment_id, name, tags)


@contextlib.contextmanager
def _ended(store: Store, run_id: str) -> Iterator[None]:
    """End the run with the block: FINISHED, FAILED after an error, KILLED after an interruption."""
    status, lock = RunStatus.KILLED, _lock_folder() / run_id
    with held_lock(lock):
        try:
            yield
            status = RunStatus.FINISHED
        except Exception:
            status = RunStatus.FAILED
            raise
        finally:
            with warn_if_unreachable(f"the status of run {run_id} is set when the next run starts"):
                store.end_run(run_id, status)
                lock.unlink(missing_ok=True)


def _lock_folder() -> Path:
    """The folder that holds a locked file for each run whose process was started in the present one."""
    return Path.cwd() / ".cache" / "runs"


def _end_runs_of_dead_processes(store: Store, experiment_id: str) -> None:
    """Mark runs as KILLED whose process was killed before it could end them itself."""
    for run in store.search_runs(experiment_id, "attributes.status = 'RUNNING'"):
        if _has_ended(run.info.run_id, run.data.tags):
            store.end_run(run.info.run_id, RunStatus.KILLED)


def _has_ended(run_id: str, tags: Mapping[str, str]) -> bool:
    """Whether the process of a run has ended, by its lock, or else by its id on this host; False if neither is known.

    The lock is also right after the host got another name, as a container does at each start.
    """
    if tags.get(_LOCKS) and (locked := is_locked(Path(tags[_LOCKS], run_id))) is not None:
        return not locked
    return tags.get("host") == socket.gethostname() and not is_alive(tags.get("process", ""))


def _log_settings(store: Store, run_id: str, settings: Settings, stage: str) -> None:
    """Log the settings as a file of the stage; those of the training also as parameters, which can be set only once."""
    if stage == "train":
        store.log_params(run_id, _params(settings))
    store.log_dict(run_id, settings.model_dump(), f"settings/{stage}.yaml")


def _log_input(
    store: Store,
    run_id: str,
    settings: Settings,
    provenance: Mapping[str, str],
    dataset: Path,
    split: str,
    context: str,
) -> None:
    """Log one split of the data set as an input of the run: its table of clips, and the digest of all its files."""
    clips = read_manifest(dataset)
    clips = clips[clips["split"] == split][["uid", "subset", "split", "classes", "frames", "labeled", "unseen"]]
    data = mlflow.data.from_pandas(  # type: ignore[attr-defined]  # mlflow defines it when it is imported
        clips.assign(classes=clips["classes"].map("_".join)).astype({"frames": float, "labeled": float}),
        source=LocalArtifactDatasetSource(str(table_path(dataset).absolute())),
        name=f"{settings.download.dataset}-{split}",
        digest=provenance["dataset_digest"],
    )
    store.log_input(run_id, DatasetInput(data._to_mlflow_entity(), [InputTag("mlflow.data.context", context)]))


def _history(checkpoint: Path) -> list[dict[str, float]]:
    """The metrics of every epoch, from the `history.csv` beside the checkpoint; empty cells are left out."""
    rows = pandas.read_csv(checkpoint.with_name("history.csv")).to_dict("records")
    return [{str(key): value for key, value in row.items() if not pandas.isna(value)} for row in rows]


def _log_epochs(store: Store, run_id: str, history: Iterable[Mapping[str, float]]) -> None:
    for metrics in history:
        named = {
            f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}": value
            for name, value in metrics.items()
            if name != "epoch"
        }
        store.log_metrics(run_id, named, int(metrics["epoch"]))


def _run_tags(settings: Settings, provenance: Mapping[str, str], identity: Iterable[str | None]) -> dict[str, str]:
    """The tags of a run that can be resumed; `identity` lists what it is recognized by."""
    return {
        **provenance,
        **_with_prefix("machine", describe_machine()),
        **_protocol_tags(settings),
        "identity": digests.short_digest(identity),
    }


def _protocol_tags(settings: Settings) -> dict[str, str]:
    return _with_prefix("protocol", {**PROTOCOLS, **evaluation_setup(settings)})


def _with_prefix(prefix: str, values: Mapping[str, str]) -> dict[str, str]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _params(settings: Settings) -> dict[str, Any]:
    """The settings that a single training depends on, by dotted key."""
    return _flatten(settings.model_dump(exclude={"sweep", "promote"}))


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _inputs(provenance: Mapping[str, str]) -> list[str | None]:
    return [provenance.get("data_digest"), provenance.get("code_digest")]
