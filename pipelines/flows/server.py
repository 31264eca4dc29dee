"""The Prefect API that flows report to: the configured one, or a temporary server.

A temporary server shares the database of the schedule's and the services' server, so that their dashboard shows the
runs of all commands. A command does not report to these servers themselves, because it would end with them.

Prefect can start a temporary server by itself, but in the caller's process group: Ctrl-C would end the server first,
and the flow would try for minutes to report to it. The server started here has a process group of its own and ends
with the process that started it, however that process ends. It binds to the loopback interface.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from pipelines.cli import CommandError
from pipelines.environment import PROJECT
from pipelines.services.gate import Gate, loopback_hosts
from pipelines.services.health import answer

HOST = "127.0.0.1"
TEMPORARY, SCHEDULING, SERVICE = "temporary", "scheduling", "service"
"""Kinds of servers: for one command, for a schedule in the foreground, and one that outlives its caller."""


class ServerError(CommandError):
    """Prefect's server did not start."""


@contextlib.contextmanager
def prefect_api(meanwhile: Callable[[], object] | None = None) -> Iterator[None]:
    """Let the flows of the block report to the configured API, or else to a temporary server.

    `meanwhile` is called while a temporary server starts.
    """
    if url := PREFECT_API_URL.value():
        if not _healthy(url):
            raise ServerError(
                f"PREFECT_API_URL={url}: Prefect's server does not answer; start it, or unset the variable"
            )
        yield
    else:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = probe.getsockname()[1]
        with _server(port, TEMPORARY, meanwhile):
            yield


@contextlib.contextmanager
def schedule_server() -> Iterator[str]:
    """Run a server with dashboard and scheduler for the block; yield the dashboard's URL.

    Raises `ServerError` if the port (`PREFECT_SERVER_API_PORT`) is taken.
    """
    port = get_current_settings().server.api.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ServerError(f"port {port} is taken; choose another one: PREFECT_SERVER_API_PORT=...") from None
    with _server(port, SCHEDULING):
        yield f"http://{HOST}:{port}"


def _healthy(url: str) -> bool:
    return answer(f"{url}/health") is not None


@contextlib.contextmanager
def _server(port: int, kind: str, meanwhile: Callable[[], object] | None = None) -> Iterator[str]:
    url = f"http://{HOST}:{port}/api"
    command = [sys.executable, "-m", "pipelines.flows.server", str(port), kind]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, cwd=PROJECT
    )
    try:
        if meanwhile:
            meanwhile()
        deadline = time.monotonic() + get_current_settings().server.ephemeral.startup_timeout_seconds
        while not _healthy(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"Prefect's server did not start on port {port} (exit code {process.poll()})")
            time.sleep(0.1)
        with temporary_settings({PREFECT_API_URL: url}):
            try:
                yield url
            finally:  # send what is still queued before the server ends
                APILogWorker.drain_all(timeout=5)
                EventsWorker.drain_all(timeout=5)
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _serve(port: int, kind: str) -> None:
    def end_with_parent() -> None:
        sys.stdin.buffer.read()  # returns when the parent closes it or has ended
        os.kill(os.getpid(), signal.SIGTERM)

    if kind != SERVICE:
        threading.Thread(target=end_with_parent, daemon=True).start()
    import uvicorn
    from prefect.server.api.server import create_app

    # Prefect itself answers every web page (CORS *), and any name that leads to this address
    app = Gate(create_app(ephemeral=kind == TEMPORARY, final=True), loopback_hosts(port))
    uvicorn.run(app, host=HOST, port=port, log_level="error", timeout_graceful_shutdown=3)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), sys.argv[2])
