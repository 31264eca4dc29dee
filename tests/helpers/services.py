"""The services of a project (`make up`) in a test, and what Prefect's server knows of their runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.helpers.processes import left_behind
from tests.helpers.runs import SLOW

T = TypeVar("T")
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that are free at this moment."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def wait_until(found: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first result of `found` that is not empty; fails after `seconds`, longer on a busy machine."""
    deadline = time.monotonic() + seconds * SLOW
    while True:
        if result := found():
            return result
        assert time.monotonic() < deadline, f"no {what} within {seconds * SLOW:.0f} s"
        time.sleep(0.5)


class Stack:
    """The services of the project in `root`, on ports of their own."""

    def __init__(self, root: Path, **extra: str) -> None:
        self.root = root
        self.prefect_port, self.mlflow_port = free_ports(2)
        self.api = f"http://127.0.0.1:{self.prefect_port}/api"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
        self.ports = {"PREFECT_SERVER_API_PORT": str(self.prefect_port), "MLFLOW_PORT": str(self.mlflow_port)}
        self.environment = kept | {
            "PYTHONPATH": str(root),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            **self.ports,
            "QDFORMER_HEALTHY_SECONDS": str(120 * SLOW),
            **extra,
        }

    def python(self, *arguments: str, limit: float = 300) -> subprocess.CompletedProcess[str]:
        """Run `python -m arguments...` in the project."""
        command = [sys.executable, "-m", *arguments]
        return subprocess.run(
            command, cwd=self.root, env=self.environment, capture_output=True, text=True, timeout=limit * SLOW
        )

    def up(self) -> float:
        """Start the services; return the seconds until all are healthy."""
        started = time.monotonic()
        done = self.python("pipelines.services", "up")
        assert done.returncode == 0, done.stdout + done.stderr + self.logs()
        return time.monotonic() - started

    def down(self) -> None:
        """Stop the services; nothing may be left of them."""
        done = self.python("pipelines.services", "down")
        assert done.returncode == 0, done.stdout + done.stderr
        wait_until(lambda: not left_behind(self.root), 30, f"end of all processes:\n{left_behind(self.root)}")

    def logs(self, *names: str) -> str:
        """The logs of the services."""
        paths = (self.root / "services").glob("*.log")
        return "\n".join(path.read_text(errors="replace") for path in paths if not names or path.stem in names)

    def processes(self, words: str = "") -> list[psutil.Process]:
        """All processes that work in the project, or those whose command line contains `words`."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.root) and words in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def process(self, service: str) -> psutil.Process:
        """The process of one service."""
        words = {"prefect": "pipelines.flows.server", "mlflow": "mlflow server"}.get(
            service, f"pipelines.services.{service}"
        )
        return wait_until(lambda: self.processes(words), 30, service)[0]

    def kill_all(self) -> None:
        """SIGKILL every process of the project at once, supervisor first, as a machine that stops."""
        found = sorted(self.processes(), key=lambda process: "supervisord" not in " ".join(process.cmdline()))
        for process in found:
            process.send_signal(signal.SIGSTOP)
        for process in found:
            process.kill()

    def request(self, path: str, body: object) -> Any:
        """POST to Prefect's API."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.api}/{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.load(response)

    def runs(self) -> list[dict[str, Any]]:
        """All flow runs except those that are due later, the oldest first; empty while the server does not answer."""
        try:
            found = self.request("flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC", "limit": 200})
        except OSError:
            return []
        return [run for run in found if run["state_name"] != "Scheduled"]

    def start_run(self, name: str) -> str:
        """Start a run of the deployment `name`, as the dashboard's button does; return its id."""
        (deployment,) = self.request("deployments/filter", {"deployments": {"name": {"any_": [name]}}})
        return str(self.request(f"deployments/{deployment['id']}/create_flow_run", {})["id"])

    def wait_for_end(self, run_id: str, seconds: float) -> dict[str, Any]:
        """Wait until a flow run has ended; return it."""

        def ended() -> dict[str, Any] | None:
            found = [run for run in self.runs() if run["id"] == run_id and run["state_type"] in FINAL]
            return found[0] if found else None

        return wait_until(ended, seconds, f"end of flow run {run_id}")

    def log_of(self, run_id: str, words: str = "") -> str:
        """The log of a flow run as the dashboard shows it. It is sent in the background: `words` are waited for."""
        deadline = time.monotonic() + 30 * SLOW
        while True:
            lines: list[dict[str, Any]] = []
            while len(lines) % 200 == 0:  # the server gives no more than 200 at a time
                wanted = {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200, "offset": len(lines)}
                if not (found := self.request("logs/filter", wanted)):
                    break
                lines += found
            log = "\n".join(line["message"] for line in lines)
            if words in log or time.monotonic() > deadline:
                return log
            time.sleep(0.5)
