"""SHA-256 digests of files, folders and settings, and hashes that rank candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tree_sha256(root: Path) -> str:
    """Hex SHA-256 of the names and contents of a file or of all files below a folder, without Python's caches."""
    digest = hashlib.sha256()
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(root)} {file_sha256(path)}\n".encode())
    return digest.hexdigest()


def short_digest(parts: Iterable[object]) -> str:
    """The first 16 hexadecimal digits of a SHA-256 over all of `parts`."""
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:16]


def rendezvous_hash(*keys: object) -> bytes:
    """32 bytes that rank a candidate for a key; the last of `keys` names the candidate.

    Choosing the candidate with the smallest hash is rendezvous hashing (Thaler and Ravishankar, 1998): adding or
    removing a candidate changes the choice of those keys only that choose it.
    """
    return hashlib.sha256("/".join(map(str, keys)).encode()).digest()
