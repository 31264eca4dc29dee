"""The record of experiments in MLflow: runs, metrics, comparisons and the model registry.

The only room that imports mlflow, which takes seconds: callers import this package when they need it.
"""

import os

# MLflow reads these when it is imported. The second limits a request to an unreachable server to half a minute, after
# which `store` decides whether to retry.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

from qdformer.tracking.promotion import Gate, PromotionError, Scorecard, Verdict, compare
from qdformer.tracking.registry import (
    CHAMPION,
    JUDGED,
    SELECTION_METRIC,
    WITHDRAWN,
    AliasChange,
    find_champion,
    find_version,
    judge,
    read_alias_log,
    register,
    roll_back,
    version_url_path,
)
from qdformer.tracking.runs import (
    experiment_name,
    find_run,
    finish_training,
    log_epoch,
    log_evaluation,
    log_files,
    log_tags,
    parent_run,
    run_name,
    training_run,
)
from qdformer.tracking.store import Store, TrackingError, tracking_uri, warn_if_unreachable
from qdformer.tracking.views import dashboard_url, runs_url, save_comparison

__all__ = [
    "CHAMPION",
    "JUDGED",
    "SELECTION_METRIC",
    "WITHDRAWN",
    "AliasChange",
    "Gate",
    "PromotionError",
    "Scorecard",
    "Store",
    "TrackingError",
    "Verdict",
    "compare",
    "dashboard_url",
    "experiment_name",
    "find_champion",
    "find_run",
    "find_version",
    "finish_training",
    "log_epoch",
    "log_evaluation",
    "log_files",
    "log_tags",
    "parent_run",
    "judge",
    "read_alias_log",
    "register",
    "run_name",
    "roll_back",
    "runs_url",
    "save_comparison",
    "tracking_uri",
    "training_run",
    "version_url_path",
    "warn_if_unreachable",
]
