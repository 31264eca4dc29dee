"""The schedule runs flows on a real server, and both stop together."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

pytestmark = pytest.mark.slow


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def flow_runs(url: str) -> list[dict]:
    with temporary_settings({PREFECT_API_URL: url}), get_client(sync_client=True) as client:
        return client.request("POST", "/flow_runs/filter", json={"limit": 100}).json()


def wait_for(found, seconds: float, what: str):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if result := found():
                return result
        except Exception:  # the server has not started yet
            pass
        time.sleep(1)
    raise AssertionError(f"no {what} within {seconds:.0f} s")


@pytest.mark.timeout(600)
def test_a_schedule_runs_flows_and_stops_with_its_server(project):
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    process = project.start("-m", "pipelines.flows", "schedule", "--every", "15", PREFECT_SERVER_API_PORT=str(port))
    try:

        def completed():
            assert process.poll() is None
            runs = flow_runs(url)
            return [run for run in runs if run["state_type"] == "COMPLETED" and run["auto_scheduled"]][1:]

        wait_for(completed, 400, "two scheduled runs of `retrain` completed")
        # other commands of the project report to the same server
        project.set_score(0.4)  # so that there is something to run
        while (by_hand := project.python("-m", "pipelines.flows", "reproduce")).returncode:
            assert "another run is at work" in by_hand.stderr
            time.sleep(1)
        assert any(run["name"].startswith("reproduce") for run in flow_runs(url))
    finally:
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert f"http://127.0.0.1:{port}" in output
    assert "Nothing changed: qdformer-stamps version 1, champion" in output
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_taken_port_is_an_error(project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = project.python("-m", "pipelines.flows", "schedule", PREFECT_SERVER_API_PORT=str(port))
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
