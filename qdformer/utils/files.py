"""Atomic writes: a file or folder is written under a temporary name and then moved into place."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


def partial_path(path: Path) -> Path:
    """The temporary name of a file or folder: hidden, in the same folder, so that the move is a single rename."""
    return path.with_name(f".{path.name}.partial")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the temporary path that the block writes to; it replaces `path` when the block ends without an error.

    The parent folder is created. After an error `path` is unchanged and the temporary file is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder for the block to fill; it replaces `path` when the block ends without an error.

    The parent folder is created. After an error `path` is unchanged and the temporary folder is removed.
    """
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


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically, see `new_file`. Raises `OSError` if it cannot be written."""
    with new_file(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) atomically. Raises `OSError` if it cannot be written."""
    write_bytes(path, text.encode("utf-8"))


def write_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    """Write a CSV file with a header atomically. Raises `OSError` if it cannot be written."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
