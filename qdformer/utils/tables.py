"""Reading the tables that stages leave for each other, and the lists that data sets are published with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas

from qdformer.utils.errors import InputError


def read_table(
    path: Path, columns: Iterable[str], error: type[InputError], writer: str = "", numbers: Iterable[str] = ()
) -> pandas.DataFrame:
    """All cells as text, but for those of the columns `numbers` (an empty cell there is NaN).

    Raises `error` if the file is missing (where a stage writes it, `writer` names that), broken or lacks one of
    `columns`.
    """
    columns = list(columns)
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        where = f"the stage {writer} writes it" if writer else f"expected a table with the columns {', '.join(columns)}"
        raise error(f"{path}: missing; {where}") from None
    except IsADirectoryError:
        raise error(f"{path}: a folder; expected a table with the columns {', '.join(columns)}") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as problem:
        raise error(f"{path}: not a readable table ({problem})") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise error(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    try:
        return table.assign(**{name: pandas.to_numeric(table[name].replace("", None)) for name in numbers})
    except ValueError as problem:
        raise error(f"{path}: not a number where one is expected ({problem})") from None
