"""What the flows' command lines share: one option, tables, one line and a non-zero code on failure."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from pipelines.cli import BAD_SETTINGS, FAILED, INTERRUPTED
from pipelines.flows.pipeline import StageError
from pipelines.flows.server import ServerError, prefect_api
from pipelines.workspace import preset_settings
from qdformer.config.base import SettingsError
from qdformer.utils.errors import InputError


def arguments(description: str) -> argparse.ArgumentParser:
    """The options of every flow."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="", help="a preset in pipelines/presets/ (default: params.yaml as it is)")
    return parser


def run_flow(flow: Callable[[str], object], description: str) -> NoReturn:
    """Run a flow on the preset named on the command line, and exit."""
    data = arguments(description).parse_args().data

    def run() -> None:
        with prefect_api(meanwhile=load_tracking):
            flow(data)

    run_command(run, data)


def load_tracking() -> None:
    """Import MLflow, which takes seconds."""
    import qdformer.tracking  # noqa: F401


def run_command(run: Callable[[], object], data: str) -> NoReturn:
    """Run and exit. Unusable settings are told before anything starts (code 2), other faults in one line (code 1)."""
    try:
        preset_settings(data)
        run()
    except SettingsError as error:
        _fail(BAD_SETTINGS, f"error: {error}")
    except StageError as error:  # which has said why
        _fail(BAD_SETTINGS if error.code == BAD_SETTINGS else FAILED, f"error: stage {error.stage or 'dvc'} failed")
    except (InputError, ServerError, OSError) as error:
        _fail(FAILED, f"error: {error}")
    except KeyboardInterrupt:
        _fail(INTERRUPTED, "interrupted: the same command goes on from here")
    sys.exit(0)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table whose first column holds names and the others numbers."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print("", table, sep="\n")


def markdown_table(columns: list[str], rows: list[list[str]]) -> str:
    """The same table in Markdown."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fail(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
