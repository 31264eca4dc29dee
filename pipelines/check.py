"""Report the faults of the data set, or of a published list of clips: a table here, pictures in reports/check.html."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from pipelines.cli import CommandError, command_main, preset_parser
from pipelines.environment import dvc_command, dvc_environment
from pipelines.findings import load_reports, save_reports, show_reports
from pipelines.settings import preset_settings
from pipelines.workspace import REPORTS, locked_workspace, open_workspace
from qdformer.data.checks import check_clip_list, check_dataset, raise_on_errors
from qdformer.data.layout import DataError
from qdformer.utils.digests import tree_sha256


def check_list(path: Path, out: Path | None) -> None:
    """Check a list of clips without its media; print the report and write it to the folder `out`.

    Raises `DataError` if there are errors.
    """
    report = check_clip_list(path)
    if out is not None:
        save_reports([report], out)
    show_reports([report], out)
    raise_on_errors(report)


def check_workspace(name: str) -> None:
    """Bring the preset's stage `check` up to date; print its last report if it did not have to run.

    A data set that was modified after the stage `download` is checked as it is, and `DataError` is raised: DVC would
    silently replace it by its own copy.
    """
    workspace = open_workspace(name)
    reports = workspace / REPORTS
    if changed := modified_folders(workspace / "data"):
        settings = preset_settings(name).check
        show_reports([check_dataset(workspace / "data" / "dataset", settings.min_component_area, settings.tolerate)])
        raise DataError(
            f"{', '.join(map(str, changed))}: changed since the stage download wrote it, and checked above as it is; "
            f"make repro{f' DATA={name}' if name else ''} restores what was written"
        )
    before = _written(reports)
    with locked_workspace(name) as (_, workspace, lock):
        command = [dvc_command(), "repro", "check"]
        if subprocess.run(command, cwd=workspace, env=dvc_environment(), pass_fds=(lock,)).returncode:
            raise CommandError("stage check failed")
    if _written(reports) == before:
        show_reports(load_reports(reports), reports)


def modified_folders(data: Path) -> list[Path]:
    """The folders of the data set that differ from what the stage `download` wrote."""
    made = data / "digests.json"
    digests = json.loads(made.read_text(encoding="utf-8")) if made.is_file() else {}
    return [data / name for name, of in digests.items() if (data / name).is_dir() and tree_sha256(data / name) != of]


def _written(reports: Path) -> int:
    path = reports / "check.json"
    return path.stat().st_mtime_ns if path.is_file() else 0


def main() -> None:
    parser = preset_parser(__doc__)
    parser.add_argument("--metadata", help="a published list of clips (AVSBench's S4, MS3, AVSS) to check alone")
    parser.add_argument("--out", type=Path, help="with --metadata: the folder for check.json and check.html")
    arguments = parser.parse_args()
    if arguments.out and not arguments.metadata:
        parser.error("--out needs --metadata")
    if arguments.metadata:
        check_list(Path(arguments.metadata), arguments.out)
    else:
        check_workspace(arguments.data)


if __name__ == "__main__":
    command_main(main)
