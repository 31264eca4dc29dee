"""Training on Ray Train: worker processes on CPUs or GPUs, resumed from the last checkpoint after a crash.

The environment determines where it runs: `RAY_ADDRESS` (a cluster; the default is a new local session),
`QDFORMER_WORKERS` (default: one per GPU, or one without GPUs), `QDFORMER_CPUS_PER_WORKER` (default: the cluster's
CPUs divided by the number of workers) and `QDFORMER_GPUS_PER_WORKER` (default: 1; 0.5 lets two trainings share a GPU).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import ray
import ray.train
from ray.train.torch import TorchTrainer
from tqdm import tqdm

from qdformer.training.job import Job
from qdformer.training.worker import train_worker
from qdformer.utils.ray_session import ray_session


@contextlib.contextmanager
def progress_bar(file: Path) -> Iterator[None]:
    """Show, during the `with` block, the progress that a worker on this or another node writes to `file`."""
    file.unlink(missing_ok=True)
    finished = threading.Event()

    def show() -> None:
        with tqdm(desc="train", unit="step", disable=None) as bar:
            over = False
            while not over:
                over = finished.wait(0.5)
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

    An interrupted run continues after its last finished epoch; folders of other runs in `job.storage` are removed.
    Raises `ray.train.TrainingFailedError` when the workers have failed more often than they may be restarted.
    """
    with ray_session():
        digest = job.digest()
        for abandoned in job.storage.iterdir():
            if abandoned.is_dir() and abandoned.name != digest:
                shutil.rmtree(abandoned)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        workers = int(os.environ.get("QDFORMER_WORKERS", max(gpus, 1)))
        cpus = int(os.environ.get("QDFORMER_CPUS_PER_WORKER", max(int(resources["CPU"]) // workers, 1)))
        share = {"GPU": float(os.environ.get("QDFORMER_GPUS_PER_WORKER", 1))} if gpus else {}
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": job, "cpus": cpus},
            scaling_config=ray.train.ScalingConfig(
                num_workers=workers,
                use_gpu=gpus > 0,
                resources_per_worker={"CPU": cpus, **share},
            ),
            run_config=ray.train.RunConfig(
                name=digest,
                storage_path=str(job.storage),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
                failure_config=ray.train.FailureConfig(max_failures=1),
                # mypy sees the RunConfig of Ray Train's first version, which lacks this argument.
                logging_config=ray.train.LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]
            ),
        )
        with progress_bar(job.progress_file), _interruptible():
            result = trainer.fit()
        assert result.checkpoint is not None  # each of at least one epoch reports a checkpoint
        with result.checkpoint.as_directory() as folder:
            out.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder) / "model.safetensors", out / "model.safetensors")
            history = json.loads((Path(folder) / "history.json").read_text(encoding="utf-8"))
        shutil.rmtree(job.storage / digest)
        return history
