"""The reports of a data check: as files, and as tables on the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.environment import shown_path
from qdformer.data.checks import KINDS, Report
from qdformer.reporting.check_page import make_page
from qdformer.utils.files import write_text

_MOST = 3
"""If a kind has more findings than this, the terminal names only the first."""


def save_reports(reports: Sequence[Report], folder: Path) -> None:
    """Write `check.json` (every finding, by source) and the page `check.html`."""
    values = {report.source: report.to_dict() for report in reports}
    write_text(folder / "check.json", json.dumps(values, indent=1) + "\n")
    write_text(folder / "check.html", make_page(reports))


def load_reports(folder: Path) -> list[Report]:
    """Read the reports that `save_reports` wrote to `folder`."""
    return [Report.from_dict(values) for values in json.loads((folder / "check.json").read_text("utf-8")).values()]


def show_reports(reports: Sequence[Report], folder: Path | None = None) -> None:
    """Print for each report its findings by kind and the videos that splits share; then the paths of its files."""
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    for report in reports:
        clips = ", ".join(f"{count:,} {split}" for split, count in report.clips.items())
        opened = f"{report.files:,} files opened" if report.files else "no file opened"
        title = f"{escape(report.source)}: {clips}; {opened}"
        if not report.findings:
            console.print("", f"{title}; nothing found", sep="\n")
            continue
        table = Table(title=title, title_justify="left")
        table.add_column("")
        table.add_column("kind", no_wrap=True)
        table.add_column("found", justify="right")
        table.add_column("clips and files (or the first)", overflow="fold")
        for kind, findings in report.by_kind().items():
            severity = findings[0].severity
            color = "red" if severity == "error" else "yellow"
            shown = findings if len(findings) <= _MOST else findings[:1]
            named = escape("\n".join(map(str, shown)))
            table.add_row(f"[{color}]{severity}[/]", KINDS[kind].title, f"{len(findings):,}", named)
        console.print("", table, sep="\n")
        _show_sharing(report, console)
    if folder is not None:
        paths = [str(shown_path(folder / name)) for name in ("check.html", "check.json")]
        console.print("", f"All findings: {', '.join(paths)}", sep="\n", soft_wrap=True)


def _show_sharing(report: Report, console: Console) -> None:
    if not report.sharing:
        return
    table = Table(title="Clips whose video also has clips in another split", title_justify="left")
    for column in ("clips of", "share a video with", "subset"):
        table.add_column(column)
    for column in ("clips", "of", "videos"):
        table.add_column(column, justify="right")
    for overlap in report.sharing:
        numbers = (f"{number:,}" for number in (overlap.clips, overlap.of, overlap.videos))
        table.add_row(overlap.split, overlap.other, overlap.subset or "all", *numbers)
    console.print("", table, sep="\n")
    for span in report.spanning:
        if span.videos:
            where = f" of {span.subset} alone" if span.subset else ""
            console.print(f"{span.videos:,} of {span.of:,} videos{where} have clips in more than one split")
