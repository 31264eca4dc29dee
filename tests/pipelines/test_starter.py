"""New clips start one retraining, of the deployment of their preset."""

from __future__ import annotations

import time
from types import SimpleNamespace
from uuid import UUID

import httpx
import pytest

from pipelines.services import starter
from pipelines.services.starter import AGAIN_SECONDS, Starter

PRESETS = {UUID(int=1): "", UUID(int=2): "toy"}


class Server:
    """In place of Prefect's client: two deployments, the runs that were started, and whether one is at work."""

    def __init__(self) -> None:
        self.started, self.busy, self.away = [], False, False

    def read_deployments(self, limit):
        if self.away:
            raise httpx.ConnectError("refused")
        return [SimpleNamespace(id=key, parameters={"data": data}) for key, data in PRESETS.items()]

    def read_flow_runs(self, deployment_filter, flow_run_filter, limit):
        return ["a run"] if self.busy else []

    def create_flow_run_from_deployment(self, deployment_id):
        self.started.append(PRESETS[deployment_id] or "default")
        return SimpleNamespace(name=f"run-{len(self.started)}")


@pytest.fixture
def watched(project, monkeypatch):
    server, told, clock = Server(), [], [time.monotonic()]
    monkeypatch.setattr(starter.time, "monotonic", lambda: clock[0])
    look = Starter(told.append, project.root)
    return project.root, server, told, clock, lambda: look.look(server)


def arrive(workspace, name: str) -> None:
    (workspace / "incoming" / name).mkdir(parents=True)
    (workspace / "incoming" / name / "metadata.csv").write_text("vid,uid\n")


def test_each_batch_starts_one_run_of_its_preset(watched):
    root, server, told, _, look = watched
    look()
    (root / "incoming" / "being-written").mkdir(parents=True)
    look()
    assert server.started == []
    arrive(root / "workspaces" / "toy", "a")
    look()
    look()
    assert server.started == ["toy"] and told == ["new clips of toy: a; started flow run run-1"]
    arrive(root, "b")
    arrive(root, "c")
    look()
    look()
    assert server.started == ["toy", "default"] and told[1].startswith("new clips of the default settings: b, c;")


def test_a_run_at_work_is_waited_for_and_an_absent_server_is_asked_again(watched):
    root, server, _, _, look = watched
    arrive(root, "a")
    server.busy = True
    look()
    server.busy, server.away = False, True
    look()
    assert server.started == []
    server.away = False
    look()
    assert server.started == ["default"]


def test_a_batch_that_stays_leads_to_another_run_much_later(watched):
    root, server, _, clock, look = watched
    arrive(root, "a")
    look()
    clock[0] += AGAIN_SECONDS - 1
    look()
    assert server.started == ["default"]
    clock[0] += 2
    look()
    assert server.started == ["default", "default"]
