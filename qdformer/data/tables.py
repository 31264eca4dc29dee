"""Reading the tables that describe a data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas

from qdformer.data.layout import DataError


def read_table(path: Path, columns: Iterable[str]) -> pandas.DataFrame:
    """All cells as text; `DataError` if the file is missing, broken or lacks one of `columns`."""
    columns = list(columns)
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; expected a table with the columns {', '.join(columns)}") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable table ({error})") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise DataError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    return table
