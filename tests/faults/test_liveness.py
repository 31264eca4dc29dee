"""Flow runs whose process was killed are marked as crashed, live ones stay, and missed ones are merged and told."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Running

from pipelines.flows.liveness import GRACE_SECONDS, Watch, end_dead_runs, merge_late_runs

HOLD = "import sys; from pathlib import Path; from qdformer.utils.locks import held_lock\n"
HOLD += "with held_lock(Path(sys.argv[1])):\n    print(flush=True); input()"
DEPLOYMENT = uuid4()


class Server:
    """In place of Prefect's client: its flow runs and task runs, selected by the type of their state."""

    def __init__(self) -> None:
        self.runs: dict[object, FlowRun] = {}
        self.tasks: dict[object, TaskRun] = {}
        self.away = False

    def add(self, name: str, kind: StateType, age: float = 0.0, **values) -> FlowRun:
        state = State(type=kind, timestamp=datetime.now(UTC) - timedelta(seconds=age))
        run = FlowRun(id=uuid4(), flow_id=uuid4(), name=name, state=state, **values)
        self.runs[run.id] = run
        return run

    def read_flow_runs(self, flow_run_filter, limit, sort=None):
        if self.away:
            raise httpx.ConnectError("refused")
        found = [run for run in self.runs.values() if run.state.type in flow_run_filter.state.type.any_]
        if due := flow_run_filter.expected_start_time:
            found = [run for run in found if run.expected_start_time <= due.before_]
        return found

    def read_task_runs(self, flow_run_filter, task_run_filter, sort, limit):
        wanted, kinds = flow_run_filter.id.any_, task_run_filter.state.type.any_
        return [one for one in self.tasks.values() if one.flow_run_id in wanted and one.state.type in kinds]

    def set_flow_run_state(self, run, state, force):
        assert force, "Prefect's own rules refuse some of these changes"
        self.runs[run].state = state

    def set_task_run_state(self, run, state, force):
        self.tasks[run].state = state


@pytest.fixture
def server(tmp_path, monkeypatch) -> Server:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    return Server()


def test_a_run_ends_with_its_process_and_no_earlier(server, tmp_path):
    run = server.add("retrain", StateType.RUNNING, age=10 * 24 * 3600)  # the clock may have stepped by days
    task = TaskRun(
        id=uuid4(), flow_run_id=run.id, task_key="stage", dynamic_key="0", state=State(type=StateType.RUNNING)
    )
    server.tasks[task.id] = task
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "running" / str(run.id))], stdin=-1, stdout=-1, text=True
    )
    process.stdout.readline()
    assert end_dead_runs(server, grace=0) == [] and run.state.type == StateType.RUNNING
    process.kill()
    process.wait()
    (line,) = end_dead_runs(server)
    assert line.startswith("flow run retrain: its process has ended without a report")
    assert run.state.type == StateType.CRASHED and task.state.type == StateType.CRASHED
    assert end_dead_runs(server) == [], "the slot is free, and the run is told once"


def test_a_run_without_a_lock_has_time_to_begin(server):
    young, old = (
        server.add("young", StateType.PENDING, age=1),
        server.add("old", StateType.RUNNING, age=GRACE_SECONDS + 1),
    )
    future = server.add("future", StateType.PENDING, age=-3600)  # the clock stepped back
    assert end_dead_runs(server, all_are_ours=False) == [], "it may run on another machine"
    (line,) = end_dead_runs(server)
    assert "old" in line and old.state.type == StateType.CRASHED
    assert young.state.type == future.state.type == StateType.PENDING
    assert len(end_dead_runs(server, grace=0)) == 1, "at the start of the services no run has begun"
    assert young.state.type == StateType.CRASHED


def test_missed_schedules_are_told_and_merged_into_one(server):
    now = datetime.now(UTC)
    values = {"auto_scheduled": True, "deployment_id": DEPLOYMENT}
    missed = [
        server.add(f"night-{days}", StateType.SCHEDULED, expected_start_time=now - timedelta(days=days), **values)
        for days in (3, 2, 1)
    ]
    by_hand = server.add("by hand", StateType.SCHEDULED, expected_start_time=now - timedelta(days=2))
    ahead = server.add("ahead", StateType.SCHEDULED, expected_start_time=now + timedelta(hours=1), **values)
    (line,) = merge_late_runs(server)
    assert line.startswith("3 scheduled runs are late, since ") and line.endswith("one run will make up for them")
    assert [run.state.type for run in missed] == [StateType.CANCELLED, StateType.CANCELLED, StateType.SCHEDULED]
    assert by_hand.state.type == ahead.state.type == StateType.SCHEDULED


def test_each_finding_is_told_once_and_an_absent_server_too(server):
    told = []
    watch = Watch(told.append)
    server.away = True
    watch.look(server)
    assert told == [], "a short absence, as during a start, is no finding"
    watch.look(server)
    watch.look(server)
    assert told == ["warning: Prefect's server does not answer"]
    server.away = False
    server.add("dead", StateType.RUNNING, age=GRACE_SECONDS + 1)
    watch.look(server)
    watch.look(server)
    assert len(told) == 2 and "flow run dead" in told[1] and told[1].endswith("marked as crashed")


def test_a_real_server_understands_the_requests(prefect_api, tmp_path, monkeypatch):
    """A run whose process has ended, with a task, and two scheduled runs that were missed."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))

    @flow(name="liveness")
    def nothing() -> None:
        pass

    @task(name="stage")
    def stage() -> None:
        pass

    with temporary_settings({PREFECT_API_URL: prefect_api}), get_client(sync_client=True) as client:
        run = client.create_flow_run(nothing, state=Running())
        work = client.create_task_run(stage, run.id, "0", state=Running())
        (tmp_path / "running").mkdir()
        (tmp_path / "running" / str(run.id)).touch()
        (line,) = [line for line in end_dead_runs(client, all_are_ours=False) if run.name in line]
        assert line.endswith("marked as crashed")
        assert client.read_flow_run(run.id).state_type == StateType.CRASHED
        assert client.read_task_run(work.id).state_type == StateType.CRASHED
        assert merge_late_runs(client, late=0) == []
        told = []
        Watch(told.append, all_are_ours=False).look(client)
        assert told == []
