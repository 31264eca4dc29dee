"""Reading CSV tables: those that a stage writes for another, and the lists that data sets are published with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas

from qdformer.utils.errors import InputError


def read_table(
    path: Path, columns: Iterable[str], error: type[InputError], writer: str = "", numbers: Iterable[str] = ()
) -> pandas.DataFrame:
    """Read a CSV file with all cells as text, except those of the columns `numbers`, where an empty cell is NaN.

    Args:
        path: the file.
        columns: columns that it must have.
        error: class of the exception.
        writer: name of the stage that writes the file, for the message about a missing file.
        numbers: columns to convert.

    Raises:
        InputError: of the class `error`, if the file is missing or damaged, or lacks one of `columns`.
    """
    columns = list(columns)
    expected = f"expected a table with the columns {', '.join(columns)}"
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise error(f"{path}: missing; {f'the stage {writer} writes it' if writer else expected}") from None
    except IsADirectoryError:
        raise error(f"{path}: a folder; {expected}") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as problem:
        raise error(f"{path}: not a readable table ({problem})") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise error(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    try:
        return table.assign(**{name: pandas.to_numeric(table[name].replace("", None)) for name in numbers})
    except ValueError as problem:
        raise error(f"{path}: not a number where one is expected ({problem})") from None
