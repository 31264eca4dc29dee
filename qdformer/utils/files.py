"""Files and folders that appear whole or not at all: written beside their place, then moved there."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where a file or folder lies until it is whole: hidden, in the same folder, so that moving it is one step."""
    return path.with_name(f".{path.name}.partial")


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file whole, in a folder made if need be; where that fails, `path` is as it was. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV file with a header, as `write_bytes` does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill in the block; it takes the place of `path` at the block's end, if that is reached."""
    partial = partial_path(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
