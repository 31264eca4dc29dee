"""What is wrong with the data set, or with a list of clips alone: a table here, pictures in reports/check.html."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from pipelines.cli import FAILED, command_main
from pipelines.findings import load_reports, save_reports, show_reports
from pipelines.workspace import dvc_command, open_workspace, preset_settings, workspace_lock
from qdformer.data.checks import check_clip_list, check_dataset, raise_on_errors
from qdformer.data.layout import DataError
from qdformer.utils.digests import tree_sha256


def check_list(path: Path, out: Path | None) -> None:
    """Show what a list of clips tells without its media, and write it to the folder `out`; `DataError` for errors."""
    report = check_clip_list(path)
    if out is not None:
        save_reports([report], out)
    show_reports([report], out)
    raise_on_errors(report)


def check_workspace(name: str) -> None:
    """Bring the preset's stage `check` up to date, and show what it found if it was so already.

    A data set that was changed since it was made is judged as it lies, for DVC would put its own back unasked;
    raises `DataError` then.
    """
    workspace = open_workspace(name)
    reports = workspace / "reports"
    if changed := modified_folders(workspace / "data"):
        settings = preset_settings(name).check
        show_reports([check_dataset(workspace / "data" / "dataset", settings.min_component_area, settings.tolerate)])
        raise DataError(
            f"{', '.join(map(str, changed))}: changed since the stage download made it, and judged above as it is; "
            f"make repro{f' DATA={name}' if name else ''} puts back what was made"
        )
    before = _written(reports)
    with workspace_lock(workspace) as lock:
        environment = {**os.environ, "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}
        command = [dvc_command(), "repro", "check"]
        if subprocess.run(command, cwd=workspace, env=environment, pass_fds=(lock,)).returncode:
            sys.exit(FAILED)
    if _written(reports) == before:
        show_reports(load_reports(reports), reports)


def modified_folders(data: Path) -> list[Path]:
    """Those of the data set's folders that are not as the stage download left them."""
    made = data / "digests.json"
    digests = json.loads(made.read_text(encoding="utf-8")) if made.is_file() else {}
    return [data / name for name, of in digests.items() if (data / name).is_dir() and tree_sha256(data / name) != of]


def _written(reports: Path) -> int:
    path = reports / "check.json"
    return path.stat().st_mtime_ns if path.is_file() else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="", help="a preset in pipelines/presets/ (default: params.yaml as it is)")
    parser.add_argument("--metadata", help="a published list of clips (AVSBench's S4, MS3, AVSS) to judge by itself")
    parser.add_argument("--out", type=Path, help="with --metadata: a folder for check.json and check.html")
    arguments = parser.parse_args()
    if arguments.metadata:
        check_list(Path(arguments.metadata), arguments.out)
    else:
        check_workspace(arguments.data)


if __name__ == "__main__":
    command_main(main)
