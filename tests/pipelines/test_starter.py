"""New clips start one retraining, of the deployment of their preset."""

from __future__ import annotations

import time
from types import SimpleNamespace
from uuid import UUID

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines.services import starter
from pipelines.services.starter import AGAIN_SECONDS, Starter

PRESETS = {UUID(int=1): "", UUID(int=2): "toy"}


class Server:
    """In place of Prefect's client: two deployments, the runs that were started, and whether one is at work."""

    def __init__(self) -> None:
        self.started, self.busy, self.away = [], False, False

    def read_deployments(self, sort, limit):
        if self.away:
            raise httpx.ConnectError("refused")
        return [SimpleNamespace(id=key, parameters={"data": data}) for key, data in PRESETS.items()]

    def read_flow_runs(self, deployment_filter, flow_run_filter, sort, limit):
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


@pytest.fixture
def real(prefect_api):
    """A client of a real server."""
    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as client:
        yield client


def test_a_real_server_understands_the_requests(project, real):
    """The run that was started is due, so that the next batch waits for it."""

    @flow(name="starter")
    def nothing(data: str = "") -> None:
        pass

    deployment = real.create_deployment(
        real.create_flow(nothing), "starter", parameters={"data": ""}, parameter_openapi_schema={}
    )
    told = []
    look = Starter(told.append, project.root)
    arrive(project.root, "a")
    look.look(real)
    assert [line.partition("; ")[0] for line in told] == ["new clips of the default settings: a"]
    of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    (run,) = real.read_flow_runs(deployment_filter=of_deployment, sort=FlowRunSort.START_TIME_ASC, limit=10)
    assert run.state_type == StateType.SCHEDULED and run.name in told[0]
    arrive(project.root, "b")
    look.look(real)
    assert len(told) == 1
    real.delete_deployment(deployment)


def test_a_request_that_a_server_refuses_is_not_taken_for_its_absence(watched):
    root, server, _, _, look = watched
    request = httpx.Request("POST", "http://127.0.0.1/api/deployments/filter")

    def refuse(sort, limit):
        raise PrefectHTTPStatusError("refused", request=request, response=httpx.Response(422, request=request))

    server.read_deployments = refuse
    with pytest.raises(PrefectHTTPStatusError):
        look()
