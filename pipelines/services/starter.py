"""Starts a retraining when clips have arrived, beside the schedule and `make retrain`."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.sorting import DeploymentSort, FlowRunSort
from prefect.exceptions import PrefectHTTPStatusError

from pipelines.arrivals import arrived_batches
from pipelines.environment import PROJECT
from pipelines.flows.liveness import UNFINISHED, require_absence
from pipelines.settings import is_default
from qdformer.config.base import SettingsError

AGAIN_SECONDS = 3600.0
"""After this time a batch that is still there, because its retraining failed or was skipped, leads to another run."""


class Starter:
    """Starts a run of the deployment whose preset has new clips, once for each batch, and tells it."""

    def __init__(self, tell: Callable[[str], object], project: Path = PROJECT) -> None:
        self._tell, self._project = tell, project
        self._started: dict[Path, float] = {}

    def look(self, client: SyncPrefectClient) -> None:
        """One look; a server that does not answer, or wrong settings, are left to the next one."""
        try:
            for deployment in client.read_deployments(sort=DeploymentSort.NAME_ASC, limit=200):
                self._look_at(client, deployment)
        except SettingsError:
            return
        except (httpx.HTTPError, PrefectHTTPStatusError) as error:
            require_absence(error)

    def _look_at(self, client: SyncPrefectClient, deployment: DeploymentResponse) -> None:
        data = str(deployment.parameters.get("data") or "")
        workspace = self._project if is_default(data, self._project) else self._project / "workspaces" / data
        now = time.monotonic()
        batches = [
            batch
            for batch in arrived_batches(workspace)
            if now >= self._started.get(batch, -AGAIN_SECONDS) + AGAIN_SECONDS
        ]
        if not batches or _is_busy(client, deployment):
            return
        run = client.create_flow_run_from_deployment(deployment.id)
        self._started |= dict.fromkeys(batches, now)
        named = ", ".join(batch.name for batch in batches)
        self._tell(f"new clips of {data or 'the default settings'}: {named}; started flow run {run.name}")


def _is_busy(client: SyncPrefectClient, deployment: DeploymentResponse) -> bool:
    """Whether a run of the deployment is at work or due."""
    of_deployment = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
    due = FlowRunFilterExpectedStartTime(before_=datetime.now(UTC))
    states = FlowRunFilterState(type=FlowRunFilterStateType(any_=[*UNFINISHED, StateType.SCHEDULED]))
    wanted = FlowRunFilter(state=states, expected_start_time=due)
    found = client.read_flow_runs(
        deployment_filter=of_deployment, flow_run_filter=wanted, sort=FlowRunSort.START_TIME_ASC, limit=1
    )
    return bool(found)
