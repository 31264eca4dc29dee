"""The processes that run the cells of a sweep: `dvc repro` for one cell each, all of them stopped with the block."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from pipelines.cli import CommandError
from pipelines.environment import PROJECT, dvc_command, dvc_environment
from pipelines.flows.pipeline import stop_group
from pipelines.ray_head import Cluster
from pipelines.sweep_status import JOBS_VARIABLE, asked_jobs

CPUS_PER_JOB = 2
"""Without GPUs, and unless `JOBS_VARIABLE` says otherwise."""
SHOWN_LINES = 3
"""Of the output of a failed process, in its error."""


class CellError(CommandError):
    """A cell failed or was stopped; the message ends its output."""


class Workers:
    """Runs `dvc repro` for cells, as many at once as `jobs`, in the Ray session `cluster`.

    `lock` is the descriptor of `workspace_lock`, which every process inherits.
    """

    def __init__(self, workspace: Path, lock: int, cluster: Cluster) -> None:
        self.workspace, self.lock, self.cluster = workspace, lock, cluster
        self.jobs = jobs_of(cluster)
        self._running: set[subprocess.Popen[bytes]] = set()
        self._guard = threading.Lock()
        self._stopped = False

    def __str__(self) -> str:
        gpus = f" and {self.cluster.gpus / self.jobs:.2g} GPUs" if self.cluster.gpus else ""
        return (
            f"{self.jobs} at once ({JOBS_VARIABLE}), each with {self._cpus} of {self.cluster.cpus} CPU cores{gpus}; "
            f"Ray session {self.cluster.address}"
        )

    @property
    def _cpus(self) -> int:
        return max(1, self.cluster.cpus // self.jobs)

    def environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        """The environment of a cell's processes: their share of the cluster, unless the user has set another."""
        share = {
            "QDFORMER_WORKERS": "1",
            "QDFORMER_CPUS_PER_WORKER": str(self._cpus),
            "QDFORMER_GPUS_PER_WORKER": f"{min(1.0, self.cluster.gpus / self.jobs):.3g}",
            "OMP_NUM_THREADS": str(self._cpus),
        }
        path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
        session = {"RAY_ADDRESS": self.cluster.address, "RAY_AUTH_MODE": self.cluster.auth_mode}
        return {**share, **dvc_environment(), "PYTHONPATH": path, **session, **extra}

    def run(self, targets: Sequence[str], log: Path, extra: Mapping[str, str]) -> None:
        """Bring the stages `targets` up to date, in this order, with the output in `log`; raises `CellError`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output, self._started(targets, output.fileno(), extra) as process:
            code = process.wait()
        if code:
            text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("error:")]
            reason = "stopped" if self._stopped else " · ".join(errors or lines[-SHOWN_LINES:]) or f"exit code {code}"
            raise CellError(f"{reason} (output: {log})")

    @contextlib.contextmanager
    def _started(
        self, targets: Sequence[str], output: int, extra: Mapping[str, str]
    ) -> Iterator[subprocess.Popen[bytes]]:
        with self._guard:
            if self._stopped:
                raise CellError("stopped")
            process = subprocess.Popen(
                # one process at a time works on DVC's files; the stages themselves run side by side
                [dvc_command(), "--wait-for-lock", "repro", "--single-item", *targets],
                cwd=self.workspace,
                env=self.environment(extra),
                stdin=subprocess.PIPE,  # closes when this process ends: pipelines.cell_record.end_with_parent
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(self.lock,),
                start_new_session=True,
            )
            self._running.add(process)
        try:
            yield process
        finally:
            stop_group(process)
            with self._guard:
                self._running.discard(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        with self._guard:
            self._stopped = True
            running = list(self._running)
        for process in running:  # all are told before one is waited for
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        for process in running:
            stop_group(process)


def jobs_of(cluster: Cluster) -> int:
    """Number of cells at once: `JOBS_VARIABLE`, or one per GPU, or one per `CPUS_PER_JOB` cores without GPUs."""
    asked = asked_jobs()
    return asked or max(1, cluster.gpus or cluster.cpus // CPUS_PER_JOB)
