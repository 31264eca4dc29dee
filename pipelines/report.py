"""Write the result of a workspace as one HTML page that works without a network: report.html."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.cli import command_main, preset_parser
from pipelines.environment import shown_path, tracking_environment
from pipelines.settings import preset_settings, preset_values
from pipelines.workspace import CHECKPOINT, PAGE, REPORTS, locked_settings, open_workspace, provenance
from qdformer.data.manifest import read_classes, read_manifest, task_classes
from qdformer.metrics.conventions import evaluation_setup
from qdformer.reporting.page import About, make_page
from qdformer.reporting.result import read_result
from qdformer.utils.digests import file_sha256
from qdformer.utils.errors import InputError
from qdformer.utils.files import write_text


def write_report(name: str, workspace: Path) -> Path:
    """Write the page of the preset `name` into its workspace and attach it to the MLflow run; return its path.

    Raises `InputError` if a report is missing or was made with other settings.
    """
    settings, values = preset_settings(name), preset_values(name)
    result = read_result(workspace / REPORTS)
    _check_settings(values, workspace, name)
    dataset = workspace / "data" / "dataset"
    clips = read_manifest(dataset)
    classes = task_classes(read_classes(dataset), settings.train.task)
    sounds = dict(zip(clips["uid"], clips["audio"], strict=True))
    os.environ.update(tracking_environment())
    from qdformer import tracking  # takes seconds to import

    checkpoint_sha256 = file_sha256(workspace / CHECKPOINT)
    run = tracking.find_run(tracking.experiment_name(settings), checkpoint_sha256)
    tags = {**provenance(workspace), **(_recorded_code(run.data.tags) if run else {})}
    page = workspace / PAGE
    about = About(
        title=f"{settings.train.model.title} on {settings.download.dataset}",
        evaluation_setup=evaluation_setup(settings),
        facts=_facts(tags, checkpoint_sha256, run),
        settings=settings.model_dump(),
        changed=_differences(values, preset_values("")),
        commands=_commands(name, tags),
    )
    write_text(page, make_page(result, classes, about, sounds))
    if run is not None:
        tracking.log_files(run.info.run_id, page)
    return page


def _check_settings(here: Mapping[str, Any], workspace: Path, name: str) -> None:
    """Raise `InputError` if the reports were made with settings other than the values `here`."""
    for section, values in locked_settings(workspace).items():
        if section in here and here[section] != values:
            changed = ", ".join(f"{section}.{key}" for key in _differences(here[section], values))
            command = f"make repro{f' DATA={name}' if name else ''}"
            raise InputError(f"{workspace / 'reports'}: made with other settings ({changed}); `{command}` renews it")


def _facts(tags: Mapping[str, str], checkpoint_sha256: str, run: Any) -> dict[str, str]:
    changed = " (with local changes)" if tags.get("git_dirty") == "true" else ""
    facts = {
        "Git commit": f"{tags.get('mlflow.source.git.commit', 'no Git')}{changed}",
        "DVC lock digest": tags["dvc_lock_digest"],
        "data set digest": tags["dataset_digest"],
        "features digest": tags["features_digest"],
        "code digest": tags["code_digest"],
        "checkpoint SHA-256": checkpoint_sha256,
    }
    if run is None:
        facts["MLflow run"] = "none in this store"
    else:
        recorded = run.data.tags
        facts["MLflow run"] = run.info.run_id
        if "machine.cpu" in recorded:
            facts["trained on"] = (
                f"{recorded['machine.cpu']}, {recorded['machine.cores']} cores, "
                f"{recorded['machine.memory_gib']} GiB; GPU: {recorded['machine.gpu']}"
            )
        if seconds := run.data.metrics.get("seconds/train"):
            facts["training took"] = f"{seconds:.0f} s"
    return {**facts, "Python": platform.python_version()}


def _recorded_code(tags: Mapping[str, str]) -> dict[str, str]:
    """The code that produced the metrics, which may differ from the code in the working tree."""
    names = ("mlflow.source.git.commit", "git_dirty", "code_digest")
    return {name: tags[f"evaluation.{name}"] for name in names if f"evaluation.{name}" in tags}


def _commands(name: str, tags: Mapping[str, str]) -> list[str]:
    data = f" DATA={name}" if name else ""
    checkout = [f"git checkout {commit}"] if (commit := tags.get("mlflow.source.git.commit")) else []
    return [*checkout, "make setup", f"make repro{data}", f"make report{data}"]


def _differences(here: Mapping[str, Any], there: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The values that differ, by dotted name."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in dict.fromkeys((*here, *there)):
        one, other = here.get(key), there.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found[prefix + key] = (one, other)
    return found


def main() -> None:
    data = preset_parser(__doc__).parse_args().data
    workspace = open_workspace(data)
    page = write_report(data, workspace)
    print(f"{shown_path(page)}: {page.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    command_main(main)
