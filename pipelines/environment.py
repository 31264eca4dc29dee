"""Where the project is, and the environment in which its commands and DVC's stages run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
USER_DIRECTORY = "QDFORMER_USER_DIRECTORY"
"""Environment variable: the directory in which the user's command was started. DVC starts stages in another one."""


def tracking_environment(project: Path = PROJECT) -> dict[str, str]:
    """`MLFLOW_TRACKING_URI` as it is set, otherwise the project's own store: all presets share one record."""
    return {"MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlflow.db'}"}


def dvc_command() -> str:
    """The `dvc` that is installed beside this Python, whatever PATH says."""
    return str(Path(sys.executable).with_name("dvc"))


def dvc_environment() -> dict[str, str]:
    """The environment of every DVC process: its stages find this Python first and print without delay."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    directory = os.environ.get(USER_DIRECTORY) or str(Path.cwd())
    return {**os.environ, **tracking_environment(), "PATH": path, "PYTHONUNBUFFERED": "1", USER_DIRECTORY: directory}


def shown_path(path: Path) -> Path:
    """The path as messages show it: relative to the directory of the user's command, where it lies below that."""
    directory = Path(os.environ.get(USER_DIRECTORY) or Path.cwd())
    absolute = Path.cwd() / path
    return absolute.relative_to(directory) if absolute.is_relative_to(directory) else absolute
