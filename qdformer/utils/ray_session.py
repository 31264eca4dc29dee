"""The Ray session of training and of feature extraction."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Iterator

import ray
from ray._private import ray_constants

from qdformer.utils.errors import InputError

# Services that a local session does not need; each costs a process, seconds of start-up or lines of output.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_STATE_ACTOR_RECONCILIATION": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # the end of a run is noticed at the next check
}

START_ATTEMPTS = 3
"""Ray gives a new session 30 s to start, which is not enough on a machine that is busy with other work."""


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Open a Ray session for the block: on the cluster that `RAY_ADDRESS` names, otherwise a local one.

    A session that is already open is used and stays open. Raises `InputError` if a new one does not start.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    runtime_env = None
    if not (address := os.environ.get("RAY_ADDRESS")):
        quoted = shlex.quote(sys.executable)
        # Ray puts the interpreter's path into a shell command as it is.
        runtime_env = {"py_executable": quoted} if quoted != sys.executable else None
    if not address or address.startswith("127."):
        # With this variable, which is meant for other systems, all processes listen on the loopback interface only.
        os.environ.setdefault(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "0")
        ray_constants.ENABLE_RAY_CLUSTER = ray_constants.env_bool(ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, True)
    # Without its dashboard Ray repeats a warning every second; the workers' output stays in Ray's log folder.
    # Without an address Ray would join any cluster that `ray start` has started on this machine.
    _start(address or "local", runtime_env)
    try:
        yield
    finally:
        ray.shutdown()


def _start(address: str, runtime_env: dict[str, str] | None) -> None:
    for _ in range(START_ATTEMPTS):
        try:
            ray.init(
                address,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                runtime_env=runtime_env,
            )
            return
        except Exception as error:  # Ray has no class of its own for this
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
    raise InputError(
        f"Ray: no session started in {START_ATTEMPTS} attempts of 30 s each; expected a machine that is less busy, or "
        "the address of a running cluster in RAY_ADDRESS"
    )
