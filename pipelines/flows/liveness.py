"""Which flow runs are alive, and the end of those that are not.

A flow holds the lock of the file `.prefect/running/ID` while it runs. The kernel releases the lock when the process
ends, however that happens: neither a clock nor a process id decides whether a run is alive.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort, TaskRunSort
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Crashed

from qdformer.utils.locks import held_lock, is_locked

GRACE_SECONDS = 30.0
"""How long a run may take between its start and its lock."""
LATE_SECONDS = 60.0
"""A scheduled run that has not begun after this time is told."""
LOOK_SECONDS = 15.0
UNFINISHED = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]


@contextlib.contextmanager
def marked_alive() -> Iterator[None]:
    """Hold the lock of the flow run that this process executes for the block."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    path = _lock_file(context.flow_run.id)
    with held_lock(path):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def end_dead_runs(client: SyncPrefectClient, grace: float = GRACE_SECONDS, *, all_are_ours: bool = True) -> list[str]:
    """Mark runs whose process has ended as crashed; return one line for each.

    A run without a lock counts as dead after `grace` seconds, and only if all runs of the server are executed on this
    machine (`all_are_ours`).
    """
    lines = []
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
    for run in client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.START_TIME_ASC, limit=200):
        locked = is_locked(_lock_file(run.id))
        if locked or (locked is None and not (all_are_ours and _age(run) >= grace)):
            continue
        line = f"flow run {run.name}: its process has ended without a report (state {run.state_name})"
        client.set_flow_run_state(run.id, Crashed(message=f"{line}; found at the next start"), force=True)
        running = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=UNFINISHED)))
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        left = client.read_task_runs(
            flow_run_filter=of_run, task_run_filter=running, sort=TaskRunSort.EXPECTED_START_TIME_ASC, limit=200
        )
        for task_run in left:
            client.set_task_run_state(task_run.id, Crashed(message="its flow run has crashed"), force=True)
        _lock_file(run.id).unlink(missing_ok=True)
        lines.append(f"{line}; marked as crashed")
    return lines


def merge_late_runs(client: SyncPrefectClient, late: float = LATE_SECONDS) -> list[str]:
    """Keep only the newest of the scheduled runs of a deployment that are late; return one line for each deployment.

    One retraining makes up for any number of missed ones.
    """
    due = datetime.now(UTC) - timedelta(seconds=late)
    wanted = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=due),
    )
    missed = defaultdict(list)
    for run in client.read_flow_runs(flow_run_filter=wanted, sort=FlowRunSort.EXPECTED_START_TIME_ASC, limit=200):
        if run.auto_scheduled and run.deployment_id:
            missed[run.deployment_id].append(run)
    lines = []
    for runs in missed.values():
        *superseded, newest = runs
        for run in superseded:
            client.set_flow_run_state(run.id, Cancelled(message=f"missed; {newest.name} makes up for it"), force=True)
        first = runs[0].expected_start_time
        assert first is not None
        counted = "1 scheduled run is" if len(runs) == 1 else f"{len(runs)} scheduled runs are"
        lines.append(f"{counted} late, since {first:%Y-%m-%d %H:%M:%S} UTC; one run will make up for them")
    return lines


def _lock_file(run: UUID) -> Path:
    return Path(os.environ["PREFECT_HOME"]) / "running" / str(run)


def _age(run: FlowRun) -> float:
    """Seconds since the run came into its state."""
    return (datetime.now(UTC) - run.state.timestamp).total_seconds() if run.state else 0.0


def require_absence(error: httpx.HTTPError | PrefectHTTPStatusError) -> None:
    """Raise the error again if the server has answered that the request is wrong: it would be so the next time too."""
    if isinstance(error, PrefectHTTPStatusError) and error.response.status_code < 500:
        raise error


class Watch:
    """Looks after the runs of a server: ends dead ones, merges late ones, and tells each finding once."""

    def __init__(self, tell: Callable[[str], object], all_are_ours: bool = True) -> None:
        self._tell, self._all_are_ours = tell, all_are_ours
        self._told: set[str] = set()
        self._unanswered = 0

    def look(self, client: SyncPrefectClient, grace: float = GRACE_SECONDS) -> None:
        """One look. A server that does not answer is looked at again the next time, and told if it is away then too."""
        try:
            found = end_dead_runs(client, grace, all_are_ours=self._all_are_ours) + merge_late_runs(client)
            self._unanswered = 0
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            require_absence(error)
            self._unanswered += 1
            found = ["Prefect's server does not answer"] if self._unanswered > 1 else []
        for line in found:
            if line not in self._told:
                self._tell(f"warning: {line}")
        self._told = set(found)


@contextlib.contextmanager
def watching(tell: Callable[[str], object], seconds: float = LOOK_SECONDS) -> Iterator[None]:
    """Look after the runs of the configured server for the block: at once, as no run has begun yet, and then often."""
    over, watch = threading.Event(), Watch(tell)

    def work() -> None:
        with get_client(sync_client=True) as client:
            watch.look(client, grace=0)
            ready.set()
            while not over.wait(seconds):
                watch.look(client)

    ready = threading.Event()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait(60)
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)
