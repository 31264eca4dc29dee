"""The catalogue: which files of which packages are used, for what, and in which split.

`catalogue.csv` holds one row per picture or (part of a) sound. Its columns:

    class     the object class; empty for clutter, backgrounds and noise
    role      picture (cut-out of the class), sound (recording of it), clutter (cut-out of a silent
              thing of no class), background (photo) or noise (sound of no class)
    split     train, val or test; all where a class has only one, which then serves every split
    start,end seconds of the part taken of a sound; empty for all of it
    package,path,sha256   where the file is and what it must be (see `fetch`)
    licence   as the package's copyright file, or the sound's own title, states it
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from qdformer.data.layout import ClassInfo, DataError
from qdformer.data.readers.stamps.fetch import Source
from qdformer.utils.constants import SPLITS

CATALOGUE = Path(__file__).with_name("catalogue.csv")
ROLES = ("picture", "sound", "clutter", "background", "noise")


@dataclass(frozen=True)
class CatalogueItem:
    """One row of the catalogue; `start` and `end` in seconds, None for the file's own ends."""

    name: str
    role: str
    split: str
    start: float | None
    end: float | None
    source: Source
    license: str


def read_catalogue(path: Path = CATALOGUE) -> list[CatalogueItem]:
    """Read the catalogue; raise `DataError` naming the line that is not as described above."""
    items = []
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            if row["role"] not in ROLES or row["split"] not in (*SPLITS, "all"):
                raise DataError(f"{path}, line {line}: role {row['role']!r} or split {row['split']!r} is unknown")
            items.append(
                CatalogueItem(
                    name=row["class"],
                    role=row["role"],
                    split=row["split"],
                    start=float(row["start"]) if row["start"] else None,
                    end=float(row["end"]) if row["end"] else None,
                    source=Source(row["package"], row["path"], row["sha256"]),
                    license=row["licence"],
                )
            )
    return items


def catalogue_classes(items: list[CatalogueItem]) -> list[ClassInfo]:
    """The classes in the catalogue's order; unseen if test has pictures and sounds that train has not."""
    names = list(dict.fromkeys(item.name for item in items if item.name))
    return [ClassInfo(name, all(_own_test(items, role, name) for role in ("picture", "sound"))) for name in names]


def select_items(items: list[CatalogueItem], role: str, split: str, name: str = "") -> list[CatalogueItem]:
    """The items of a role (and class) that a split may use; val makes do with train's where it has none."""
    fitting = [item for item in items if item.role == role and item.name == name]
    chosen = [item for item in fitting if item.split in (split, "all")]
    if not chosen and split == "val":
        return select_items(items, role, "train", name)
    return chosen


def _own_test(items: list[CatalogueItem], role: str, name: str) -> bool:
    splits = {item.split for item in items if item.role == role and item.name == name}
    return "test" in splits and "all" not in splits
