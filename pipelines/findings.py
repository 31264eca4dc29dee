"""The reports of a check: on the terminal, as JSON and as a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qdformer.data.checks import KINDS, Report
from qdformer.reporting.check_page import make_page
from qdformer.utils.files import write_text

_FEW = 3  # findings of a kind that the terminal names all of


def save_reports(reports: Sequence[Report], folder: Path) -> None:
    """Write `check.json` (every finding, by source) and `check.html`."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {report.source: report.to_dict() for report in reports}
    write_text(folder / "check.json", json.dumps(values, indent=1) + "\n")
    write_text(folder / "check.html", make_page(reports))


def load_reports(folder: Path) -> list[Report]:
    """The reports that `save_reports` has written to `folder`."""
    return [Report.from_dict(values) for values in json.loads((folder / "check.json").read_text("utf-8")).values()]


def show_reports(reports: Sequence[Report], folder: Path | None = None) -> None:
    """Print a table of the kinds for each report, one of the videos that splits share, and where `folder` has more."""
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
        table.add_column("what", no_wrap=True)
        table.add_column("found", justify="right")
        table.add_column("which, or the first", overflow="fold")
        for kind, findings in report.by_kind().items():
            severity = findings[0].severity
            colour = "red" if severity == "error" else "yellow"
            shown = findings if len(findings) <= _FEW else findings[:1]
            named = escape("\n".join(map(str, shown)))
            table.add_row(f"[{colour}]{severity}[/]", KINDS[kind].title, f"{len(findings):,}", named)
        console.print("", table, sep="\n")
        _show_sharing(report, console)
    if folder is not None:
        console.print("", f"All of it: {folder / 'check.html'}, {folder / 'check.json'}", sep="\n")


def _show_sharing(report: Report, console: Console) -> None:
    if not report.sharing:
        return
    table = Table(title="Clips whose video gave clips to another split too", title_justify="left")
    for column in ("clips of", "share a video with", "subset"):
        table.add_column(column)
    for column in ("clips", "of", "videos"):
        table.add_column(column, justify="right")
    for one in report.sharing:
        numbers = (f"{number:,}" for number in (one.clips, one.of, one.videos))
        table.add_row(one.split, one.other, one.subset or "all", *numbers)
    console.print("", table, sep="\n")
    for one in report.spanning:
        if one.videos:
            where = f" of {one.subset} alone" if one.subset else ""
            console.print(f"{one.videos:,} of {one.of:,} videos{where} have clips in more than one split")
