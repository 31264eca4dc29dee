"""Training on Ray Train: worker processes on CPUs or GPUs, resumed from the last checkpoint after a crash.

The environment determines where it runs: `RAY_ADDRESS` (a cluster; the default is a new local session),
`QDFORMER_WORKERS` (default: one per GPU, or one without GPUs), `QDFORMER_CPUS_PER_WORKER` (default: the cluster's
CPUs divided by the number of workers) and `QDFORMER_GPUS_PER_WORKER` (default: 1; 0.5 lets two trainings share a GPU).
`QDFORMER_LOADER_WORKERS` is the number of processes with which each worker loads its data (default: on GPUs one less
than its CPUs, and without GPUs none, because the training itself needs the CPUs). `QDFORMER_HANG_LIMIT` is the number
of seconds after which a worker that does not answer ends the training.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import TrainingFailedError, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME as SNAPSHOT
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from tqdm import tqdm

from qdformer.data.dataset import check_batch_size
from qdformer.training.checkpoint import MODEL, usable_checkpoints
from qdformer.training.job import Job
from qdformer.training.loop import is_finished
from qdformer.training.worker import train_worker
from qdformer.utils.digests import short_digest
from qdformer.utils.errors import InputError
from qdformer.utils.files import write_text
from qdformer.utils.ray_session import ray_session

RESTARTS = 2
"""How often a training continues after the death of a worker. An error that a worker raises itself ends it."""

HANG_LIMIT = 300.0
"""Seconds after which a worker that does not answer, neither to Ray nor to the other workers, ends the training."""

NODE_DEATH_SECONDS = 20
"""Time after which Ray knows that a node has died: five health checks of three seconds each."""

LOST_CONNECTION = ("Connection reset by peer", "Connection closed by peer")
"""What gloo reports to the other ranks when a worker's process ends."""


class TrainingError(InputError):
    """The training cannot go on; the message gives the reason of the worker that failed first."""


Node = Mapping[str, float]
"""The resources of a node of the Ray cluster, by Ray's names."""


@dataclass(frozen=True)
class Shape:
    """How a training is divided: worker processes, and the resources that Ray reserves for each."""

    workers: int
    cpus: int
    gpus: float
    loader_workers: int = 0

    @classmethod
    def from_environment(cls, nodes: Sequence[Node], batch_size: int) -> Shape:
        """The shape that the environment asks for on a cluster of these nodes.

        Raises `InputError` if a variable is not a positive number, if the nodes have less than the workers need, or if
        a batch has fewer clips than there are workers.
        """
        all_gpus = sum(node.get("GPU", 0) for node in nodes)
        workers = int(_number("QDFORMER_WORKERS", max(int(all_gpus), 1), whole=True))
        gpus = _number("QDFORMER_GPUS_PER_WORKER", 1) if all_gpus else 0.0
        most = max(int(node.get("CPU", 0)) for node in nodes)
        fitting = [cpus for cpus in range(1, most + 1) if cls(workers, cpus, gpus).places(nodes) >= workers]
        shape = cls(workers, int(_number("QDFORMER_CPUS_PER_WORKER", max(fitting, default=1), whole=True)), gpus)
        for kind, each in (("CPU", shape.cpus), ("GPU", gpus)):
            have = sum(node.get(kind, 0) for node in nodes)
            if workers * each > have:
                raise InputError(
                    f"QDFORMER_WORKERS: {workers} workers with {each:g} {kind}s each need {workers * each:g} {kind}s, "
                    f"but the Ray cluster has {have:g}; ask for fewer workers, or fewer {kind}s for each"
                )
        if shape.places(nodes) < workers:
            raise InputError(
                f"QDFORMER_WORKERS: {workers} workers with {shape.cpus} CPUs and {gpus:g} GPUs each, but the "
                f"{len(nodes)} nodes of the Ray cluster have place for {shape.places(nodes)}"
            )
        check_batch_size(batch_size, workers)
        loader_workers = _number("QDFORMER_LOADER_WORKERS", shape.cpus - 1 if gpus else 0, whole=True, least=0)
        return replace(shape, loader_workers=int(loader_workers))

    def places(self, nodes: Sequence[Node]) -> int:
        """Number of such workers for which the nodes have place."""
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        return sum(min(int(node.get(kind, 0) / each) for kind, each in needed.items() if each) for node in nodes)


def cluster_nodes() -> list[Node]:
    """The resources of the living nodes of the open Ray session."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _number(variable: str, default: float, whole: bool = False, least: int = 1) -> float:
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    try:
        value = int(text) if whole else float(text)
        if not (value >= least if whole else value > 0) or not value < 1e6:
            raise ValueError
    except ValueError:
        expected = f"a whole number of at least {least}" if whole else "a number above 0"
        raise InputError(f"{variable}: expected {expected}, not {text!r}") from None
    return value


@contextlib.contextmanager
def progress_bar(file: Path, messages: Path) -> Iterator[None]:
    """Show, during the `with` block, the progress that a worker on this or another node writes to `file`, and print the
    lines that it appends to `messages`.
    """
    file.unlink(missing_ok=True)
    messages.write_text("", encoding="utf-8")
    finished = threading.Event()

    def show() -> None:
        shown = 0
        with tqdm(desc="train", unit="step", disable=None) as bar:
            over = False
            while not over:
                over = finished.wait(0.5)
                text = messages.read_text(encoding="utf-8") if messages.is_file() else ""
                complete = text[: text.rfind("\n") + 1]
                for line in complete[shown:].splitlines():
                    bar.write(line)
                shown = len(complete)
                with contextlib.suppress(FileNotFoundError, ValueError):  # not there yet, or half written
                    done, bar.total = map(int, file.read_text(encoding="ascii").split())
                    bar.update(done - bar.n)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Make Ctrl-C raise `KeyboardInterrupt`; Ray's own handler, which it does not remove, exits with code 0."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)


def launch(job: Job, out: Path) -> list[dict[str, float]]:
    """Train and write `out/model.safetensors`; return the metrics of every epoch.

    An interrupted run continues from its last checkpoint. Its checkpoints stay in `job.storage` until a run with
    other settings, data or code starts there: if this process is killed before the caller has kept the result, the next
    call returns the same result without training.

    Raises `InputError` for a shape that the cluster cannot give, and `TrainingError` when the training cannot go on.
    """
    folder = _prepare(job)
    checkpoint = _newest(folder)
    if not is_finished(_history(checkpoint), job.recipe):
        with ray_session():
            _train(job, folder, Shape.from_environment(cluster_nodes(), job.recipe.batch_size))
        checkpoint = _newest(folder)
    else:
        print("Training: finished before with the same settings, data and code; that result is used", flush=True)
    if checkpoint is None:
        raise TrainingError(f"{folder}: no usable checkpoint after the training")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(checkpoint / MODEL, out / MODEL)
    for other in folder.iterdir():
        if other != checkpoint:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
    return _history(checkpoint)


def _newest(folder: Path) -> Path | None:
    return next(iter(usable_checkpoints(folder)), None)


def _history(checkpoint: Path | None) -> list[dict[str, float]]:
    """The metrics of the epochs after which a checkpoint was written."""
    return [] if checkpoint is None else json.loads((checkpoint / "history.json").read_text(encoding="utf-8"))


def _prepare(job: Job) -> Path:
    """The folder of the run's checkpoints; removes those of other runs, and says why they cannot be continued."""
    inputs = job.inputs()
    digest = short_digest(inputs.values())
    try:
        before = json.loads(job.inputs_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    if before and (changed := [name for name, value in inputs.items() if before.get(name) != value]):
        print(f"Training: started afresh, because this changed: {', '.join(changed)}", flush=True)
    for path in job.storage.iterdir():
        if path.is_dir() and path.name != digest:
            shutil.rmtree(path)
    write_text(job.inputs_file, json.dumps(inputs))
    return job.storage / digest


def _train(job: Job, folder: Path, shape: Shape) -> None:
    if job.on_start is not None:
        job.on_start({"workers": str(shape.workers), "global_batch_size": str(job.recipe.batch_size)})
    hang_limit = _number("QDFORMER_HANG_LIMIT", HANG_LIMIT)
    for wait in ("WORKER_HEALTH_CHECK", "WORKER_GROUP_START"):
        os.environ[f"RAY_TRAIN_{wait}_TIMEOUT_S"] = str(hang_limit)
    for restarts in range(RESTARTS + 1):
        started = time.monotonic()
        try:
            _fit(job, folder, shape, hang_limit)
            return
        except TrainingFailedError as error:
            dead = _dead_workers(error)
            if not dead or restarts == RESTARTS:
                raise TrainingError(f"the training failed: {_reason(error, hang_limit)}") from None
            minutes = (time.monotonic() - started) / 60
            if len(cluster_nodes()) > 1:
                time.sleep(NODE_DEATH_SECONDS)
            shape = replace(shape, workers=max(1, min(shape.workers, shape.places(cluster_nodes()))))
            print(
                f"Training: {dead} died after {minutes:.1f} minutes; restarting from the last checkpoint with "
                f"{shape.workers} worker{'s' * (shape.workers > 1)}",
                flush=True,
            )


def _fit(job: Job, folder: Path, shape: Shape, hang_limit: float) -> None:
    # Ray's list of the checkpoints does not know which of them are damaged, and stops a start if it is damaged itself.
    (folder / SNAPSHOT).unlink(missing_ok=True)
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={
            "job": job,
            "cpus": shape.cpus,
            "loader_workers": shape.loader_workers,
            "folder": folder,
            "checkpoint": _newest(folder),
        },
        torch_config=TorchConfig(timeout_s=int(hang_limit)),
        scaling_config=ray.train.ScalingConfig(
            num_workers=shape.workers,
            use_gpu=shape.gpus > 0,
            resources_per_worker={"CPU": shape.cpus, **({"GPU": shape.gpus} if shape.gpus else {})},
        ),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            # mypy sees these classes of Ray Train's first version, which lack the arguments.
            failure_config=ray.train.FailureConfig(max_failures=0, controller_failure_limit=1),  # type: ignore[call-arg]
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
        ),
    )
    with progress_bar(job.progress_file, job.messages_file), _interruptible():
        trainer.fit()


def _dead_workers(error: TrainingFailedError) -> str:
    """The workers whose process or node ended, or an empty string. The others fail as a consequence."""
    failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
    if ranks := [str(rank) for rank, cause in failures.items() if _is_death(cause)]:
        return f"worker {', '.join(ranks)}"
    # The other ranks may notice the lost connection before Ray notices the death.
    lost = [any(text in str(cause) for text in LOST_CONNECTION) for cause in failures.values()]
    return "a worker" if lost and all(lost) else ""


def _is_death(cause: BaseException) -> bool:
    return isinstance(cause, RayActorError | WorkerHealthCheckFailedError)


def _reason(error: TrainingFailedError, hang_limit: float) -> str:
    """One line: the error of a worker that is not the consequence of another one's."""
    if not isinstance(error, WorkerGroupError):
        return " ".join(str(getattr(error, "controller_failure", error)).split())
    # A rank that waits for one that failed gets a RuntimeError from torch.distributed.
    failures = sorted(error.worker_failures.items(), key=lambda item: isinstance(item[1], RuntimeError))
    rank, cause = failures[0]
    text = " ".join(str(cause).split()) or "no message"
    if _is_death(cause):
        return f"worker {rank} died; its output is in Ray's log folder"
    if isinstance(cause, WorkerHealthCheckTimeoutError):
        return f"worker {rank} did not answer for {hang_limit:g} s (QDFORMER_HANG_LIMIT)"
    if isinstance(cause, RuntimeError) and "Timed out waiting" in text:
        return f"worker {rank} waited for another worker longer than {hang_limit:g} s (QDFORMER_HANG_LIMIT): {text}"
    return (
        f"worker {rank}: {text}" if isinstance(cause, InputError) else f"worker {rank}: {type(cause).__name__}: {text}"
    )
