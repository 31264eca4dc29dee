"""The Ray session of training and of feature extraction."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

import ray

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


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Open a Ray session for the block: on the cluster that `RAY_ADDRESS` names, otherwise a local one.

    A session that is already open is used and stays open.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Without its dashboard Ray repeats a warning every second; the workers' output stays in Ray's log folder.
    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
