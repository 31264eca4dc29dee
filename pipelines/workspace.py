"""Where a preset runs, one run at a time, and what its results came from.

The default settings run in the project's root. Every other preset (`qdformer.config.presets`) runs in a DVC
workspace of its own, `workspaces/NAME/`: the same `dvc.yaml` and code by symbolic link, other
settings, other results, one cache. Running one preset never touches what another has made, and what
one has made, such as the data set, another with the same settings takes from the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from qdformer.config.base import SettingsError
from qdformer.config.presets import is_default, merge, overrides_path, preset_values
from qdformer.config.settings import Settings, parse_settings, read_yaml
from qdformer.utils.digests import file_sha256, short_digest, tree_sha256
from qdformer.utils.errors import InputError

PROJECT = Path(__file__).resolve().parents[1]
LINKED = ("dvc.yaml", ".dvcignore", "pipelines", "qdformer")
DVC_CONFIG = """[core]
    no_scm = true
    analytics = false
    check_update = false
[cache]
    dir = ../../../.dvc/cache
    type = "reflink,hardlink,copy"
"""


class BusyError(InputError):
    """Another run is at work in the workspace; the message names its process."""


def save_overrides(name: str, values: dict[str, Any], project: Path = PROJECT) -> None:
    """Lay `values` over the preset from now on; what was remembered before stays, where they do not replace it.

    Raises `SettingsError`, and changes nothing, if there is no such preset or the outcome is not usable.
    """
    own = overrides_path(name, project)
    if is_default(name, project):
        raise SettingsError(f"{name or 'the default'}: its values are in params.yaml; change them there")
    merged = merge(preset_values(name, project), values)
    parse_settings(merged, f"{name} with the values given")
    kept = merge(read_yaml(own) if own.is_file() else {}, values)
    own.parent.mkdir(parents=True, exist_ok=True)
    _write(own, "# Laid over the preset of this name.\n" + yaml.safe_dump(kept, sort_keys=False))


def preset_settings(name: str = "", project: Path = PROJECT) -> Settings:
    """The settings of a preset; raise `SettingsError` as `preset_values` does. Writes nothing."""
    return parse_settings(preset_values(name, project), name or "params.yaml")


def open_workspace(name: str = "", project: Path = PROJECT) -> Path:
    """Make the preset's workspace ready and return its folder, absolute.

    Nothing is written if the settings are not usable; `params.yaml` is rewritten only when its
    values changed, so that opening a workspace makes nothing stale.
    """
    values = preset_values(name, project)
    if is_default(name, project):
        return project
    workspace = project / "workspaces" / name
    workspace.mkdir(parents=True, exist_ok=True)
    for linked in LINKED:
        link, target = workspace / linked, Path("..", "..", linked)
        if not link.is_symlink() and (project / linked).exists():
            link.symlink_to(target)
    config = workspace / ".dvc" / "config"
    if not config.is_file():
        subprocess.run([dvc_command(), "init", "--no-scm", "--quiet", "--force"], cwd=workspace, check=True)
        _write(config, DVC_CONFIG)
    params = workspace / "params.yaml"
    if not params.is_file() or read_yaml(params) != values:
        header = f"# Written from ../../params.yaml and pipelines/presets/{name}.yaml: change those.\n"
        _write(params, header + yaml.safe_dump(values, sort_keys=False))
    return workspace


@contextlib.contextmanager
def workspace_lock(workspace: Path) -> Iterator[int]:
    """Hold the workspace for the block; yield the lock's file descriptor.

    The lock goes with the processes that hold the descriptor, however they end: hand it to a child
    that must not outlive it unnoticed. Raises `BusyError` if another run holds it.
    """
    path = workspace / ".dvc" / "tmp" / "run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "process unknown"
            raise BusyError(f"{workspace}: another run is at work here ({holder}, or what it left running)") from None
        file.truncate(0)
        file.write(f"process {os.getpid()}\n")
        file.flush()
        yield file.fileno()


def dvc_command() -> str:
    """The `dvc` beside this Python, wherever PATH points."""
    return str(Path(sys.executable).with_name("dvc"))


def tracking_environment(project: Path = PROJECT) -> dict[str, str]:
    """`MLFLOW_TRACKING_URI` as it is set, or the project's own store: all presets keep one record."""
    return {"MLFLOW_TRACKING_URI": os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{project / 'mlflow.db'}"}


def provenance(workspace: Path) -> dict[str, str]:
    """What the workspace's results come from: the Git commit, and digests of data, features, DVC's lock and code.

    `data_digest` is of all below `data/`, `dataset_digest` of the data set in it, `features_digest` of the features.
    """
    lock, lock_file = locked_outs(workspace), workspace / "dvc.lock"

    def outs(prefix: str) -> str:
        return short_digest(path + md5 for path, md5 in sorted(lock.items()) if path.startswith(prefix))

    tags = {
        "preset": workspace.name if workspace.parent.name == "workspaces" else "default",
        "data_digest": outs("data/"),
        "dataset_digest": outs("data/dataset"),
        "features_digest": outs("data/features"),
        "dvc_lock_digest": file_sha256(lock_file)[:16] if lock_file.is_file() else "",
        "code_digest": tree_sha256(PROJECT / "qdformer")[:16],
    }
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        tags["mlflow.source.git.commit"] = _git("rev-parse", "HEAD")
        tags["git_dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def locked_outs(workspace: Path) -> dict[str, str]:
    """The MD5 that DVC has locked for every out, by its path in the workspace."""
    path = workspace / "dvc.lock"
    stages = read_yaml(path).get("stages", {}) if path.is_file() else {}
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}


def locked_settings(workspace: Path) -> dict[str, Any]:
    """The sections of settings that the workspace's results were made with, by DVC's lock."""
    path = workspace / "dvc.lock"
    stages = read_yaml(path).get("stages", {}) if path.is_file() else {}
    return {
        section: values
        for stage in stages.values()
        for section, values in stage.get("params", {}).get("params.yaml", {}).items()
        if "." not in section
    }


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
