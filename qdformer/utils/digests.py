"""Digests that tell whether files, folders and settings are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(root: Path) -> str:
    """SHA-256 over the names and contents of a file or of all files below a folder, Python's caches left out."""
    digest = hashlib.sha256()
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(root)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def short_digest(parts: Iterable[object]) -> str:
    """A short name, 16 hexadecimal digits, for all of `parts` together."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]
