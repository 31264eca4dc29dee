"""The folder in which a preset runs, its lock, and the provenance of its results.

The default settings run in the project's root. Every other preset runs in a DVC workspace of its own,
`workspaces/NAME/`, which has the same `dvc.yaml` and code by symbolic links, other settings, other results, and the
same cache. Running one preset never touches the results of another one, and whatever one has computed (the data set,
for example) another one with the same settings takes from the cache.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import yaml

from pipelines.environment import PROJECT, dvc_command, dvc_environment
from pipelines.settings import is_default, preset_values
from qdformer.config.settings import parse_settings, read_yaml
from qdformer.utils.digests import file_sha256, short_digest, tree_sha256
from qdformer.utils.errors import InputError
from qdformer.utils.files import write_text
from qdformer.utils.processes import holders, is_alive, process_identity

if TYPE_CHECKING:
    from qdformer.config.settings import Settings

CHECKPOINT = Path("models", "qdformer", "model.safetensors")
VGGISH = Path("models", "vggish", "vggish.safetensors")
REPORTS = Path("reports")
ACCEPTED = Path("accepted")
PARAMS = Path("params.yaml")
PAGE = Path("report.html")
"""Paths of results, relative to the workspace."""

LINKED = ("dvc.yaml", ".dvcignore", "pipelines", "qdformer")
DVC_CONFIG = """[core]
    no_scm = true
    analytics = false
    check_update = false
[cache]
    dir = ../../../.dvc/cache
    type = "reflink,hardlink,copy"
"""


ORPHAN_SECONDS = 25.0
"""How long the processes of a killed run may take to end; pipelines/flows/guard.py ends them in 20 seconds."""


class BusyError(InputError):
    """Another run holds the workspace; the message names its process."""


def open_workspace(name: str = "", project: Path = PROJECT) -> Path:
    """Prepare the preset's workspace and return its absolute path.

    Nothing is written if the settings are not valid. `params.yaml` is written by `locked_workspace`, because a run may
    be at work with its settings.
    """
    preset_values(name, project)
    if is_default(name, project):
        return project
    return make_workspace(name, project)


def make_workspace(name: str, project: Path = PROJECT) -> Path:
    """Prepare `workspaces/NAME` without its `params.yaml`, for settings that have been validated."""
    workspace = project / "workspaces" / name
    (workspace / ACCEPTED).mkdir(parents=True, exist_ok=True)
    for linked in LINKED:
        link, target = workspace / linked, Path("..", "..", linked)
        if not link.is_symlink() and (project / linked).exists():
            link.symlink_to(target)
    config = workspace / ".dvc" / "config"
    if not config.is_file():
        subprocess.run([dvc_command(), "init", "--no-scm", "--quiet", "--force"], cwd=workspace, check=True)
        write_text(config, DVC_CONFIG)
    return workspace


def write_params(folder: Path, values: Mapping[str, Any], header: str) -> None:
    """Write `params.yaml`, unless it holds these values already."""
    params = folder / PARAMS
    if not params.is_file() or read_yaml(params) != values:
        write_text(params, header + yaml.safe_dump(dict(values), sort_keys=False))


@contextlib.contextmanager
def locked_workspace(name: str = "", project: Path = PROJECT) -> Iterator[tuple[Settings, Path, int]]:
    """Open and lock the preset's workspace for the block; yield its settings, its path and the lock's descriptor.

    `params.yaml` is rewritten under the lock, and only when its values have changed, so that opening a workspace makes
    no stage stale. Raises `BusyError` as `workspace_lock`.
    """
    workspace = open_workspace(name, project)
    with workspace_lock(workspace) as lock:
        values = preset_values(name, project)
        if not is_default(name, project):
            header = f"# Written from ../../params.yaml and pipelines/presets/{name}.yaml; edit those instead.\n"
            write_params(workspace, values, header)
        yield parse_settings(values, name or "params.yaml"), workspace, lock


@contextlib.contextmanager
def workspace_lock(workspace: Path) -> Iterator[int]:
    """Lock the workspace for the block; yield the file descriptor of the lock.

    The lock lasts until every process that holds the descriptor has ended. A child process that may outlive this one
    gets the descriptor too, so that the workspace stays locked until it ends. If the run that took the lock has been
    killed, what it started is given `ORPHAN_SECONDS` to end. Raises `BusyError` if another run holds the lock.
    """
    path = workspace / ".dvc" / "tmp" / "run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        _acquire(file, workspace)
        file.truncate(0)
        file.write(process_identity(os.getpid()) + "\n")
        file.flush()
        _require_readable_locks(path.with_name("rwlock"))
        yield file.fileno()


def _require_readable_locks(path: Path) -> None:
    """Raise `InputError` if the file of DVC's own locks is damaged; entries of dead processes are removed by DVC."""
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        raise InputError(f"{path}: DVC cannot read its locks; remove this file if no dvc command is running") from None


def _acquire(file: TextIO, workspace: Path) -> None:
    deadline, told = time.monotonic() + ORPHAN_SECONDS, False
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            file.seek(0)
            identity = file.read().strip()
        pid = identity.partition(" ")[0] or "unknown"
        if is_alive(identity):
            raise BusyError(f"{workspace}: another run is at work here (process {pid}, or a process that it started)")
        if time.monotonic() > deadline:
            path = Path(file.name)
            left = ", ".join(str(found) for found in holders(path) if found != os.getpid()) or "of another user"
            raise BusyError(
                f"{workspace}: another run is at work here (process {pid} has ended, but not what it started: process "
                f"{left}; end it with kill)"
            )
        if not told:
            print(f"{workspace}: waiting for what process {pid} started to end", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.2)


def is_up_to_date(workspace: Path) -> bool:
    """Whether DVC finds no stage to run and no out that has changed."""
    command = [dvc_command(), "status", "--quiet"]
    return subprocess.run(command, cwd=workspace, env=dvc_environment(), stderr=subprocess.DEVNULL).returncode == 0


def provenance(workspace: Path) -> dict[str, str]:
    """The origin of the workspace's results: Git commit, and digests of data, features, `dvc.lock` and code.

    `vggish_sha256` is that of the VGGish of the features, empty before there is one. `data_digest` covers everything
    below `data/`, `dataset_digest` the data set and `features_digest` the features.
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
        "vggish_sha256": file_sha256(workspace / VGGISH) if (workspace / VGGISH).is_file() else "",
        "code_digest": tree_sha256(PROJECT / "qdformer")[:16],
    }
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        tags["mlflow.source.git.commit"] = _git("rev-parse", "HEAD")
        tags["git_dirty"] = str(bool(_git("status", "--porcelain", "--untracked-files=no"))).lower()
    return tags


def locked_outs(workspace: Path) -> dict[str, str]:
    """The MD5 of every out in `dvc.lock`, by its path in the workspace."""
    stages = _locked_stages(workspace)
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", ()) if "md5" in out}


def locked_settings(workspace: Path) -> dict[str, Any]:
    """The sections of settings that the workspace's results were computed with, from `dvc.lock`."""
    return {
        section: values
        for stage in _locked_stages(workspace)
        for section, values in stage.get("params", {}).get("params.yaml", {}).items()
        if "." not in section
    }


def locked_stage(workspace: Path, name: str) -> dict[str, Any]:
    """The entry of a stage in `dvc.lock`; empty if it has none."""
    path = workspace / "dvc.lock"
    return read_yaml(path).get("stages", {}).get(name, {}) if path.is_file() else {}


def restore_out(workspace: Path, md5: str, target: Path) -> bool:
    """Copy a folder or file that DVC has cached to `target`; False if the cache lacks a part of it.

    Raises `InputError`, and copies nothing, if a cached file is damaged.
    """
    cache = _cache_folder(workspace) / "files" / "md5"
    listing = _cached(cache, md5)
    if not listing.is_file():
        return False
    if md5.endswith(".dir"):
        _require_intact(listing)
        files = json.loads(listing.read_text(encoding="utf-8"))
    else:
        files = [{"md5": md5, "relpath": ""}]
    sources = [(_cached(cache, file["md5"]), target / file["relpath"]) for file in files]
    if not all(source.is_file() for source, _ in sources):
        return False
    for source, _ in sources:
        _require_intact(source)
    for source, path in sources:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, path)
    return True


def _cached(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _require_intact(path: Path) -> None:
    """Raise `InputError` if the content of a file of DVC's cache is not the one that its name says."""
    expected = (path.parent.name + path.name).removesuffix(".dir")
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise InputError(
            f"{path}: damaged, its MD5 is {found}; remove this file, and get it again with `dvc pull` or by a new run"
        )


def keep_settings_in_lock(workspace: Path, stage: str, values: dict[str, Any], since: float) -> None:
    """Let `dvc.lock` name the settings `values` of `stage`, which DVC read from `params.yaml` only when it had ended.

    What DVC has stored since the time `since` to take such a result from its cache again is removed.
    """
    from dvc.utils.serialize import modify_yaml  # its import takes seconds

    with modify_yaml(str(workspace / "dvc.lock")) as lock:
        locked = lock.get("stages", {}).get(stage, {})
        params = locked.get("params", {}).get(str(PARAMS), {})
        for key in params:
            value: Any = values
            for part in key.split("."):
                value = value[part]
            params[key] = value
        command = locked.get("cmd")
    for entry in (_cache_folder(workspace) / "runs").glob("*/*/*"):
        if entry.stat().st_mtime >= since and read_yaml(entry).get("cmd") == command:
            entry.unlink()
            with contextlib.suppress(OSError):  # other results of the same inputs
                entry.parent.rmdir()  # DVC fails on an empty one


def _cache_folder(workspace: Path) -> Path:
    """The folder of DVC's cache, which all workspaces share."""
    return PROJECT / ".dvc" / "cache" if workspace.parent.name == "workspaces" else workspace / ".dvc" / "cache"


def _locked_stages(workspace: Path) -> list[dict[str, Any]]:
    path = workspace / "dvc.lock"
    return list(read_yaml(path).get("stages", {}).values()) if path.is_file() else []


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(PROJECT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
