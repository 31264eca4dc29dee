"""The catalogue of the files that are used: their packages, roles and splits.

`catalogue.csv` holds one row per picture or (part of a) sound. Its columns:

    class     the object class; empty for clutter, backgrounds and noise
    role      picture (cut-out of the class), sound (recording of the class), clutter (cut-out of a silent object of
              no class), background (photo) or noise (sound of no class)
    split     train, val or test; all if the class has only one such file, which then serves every split
    start,end the used part of a sound in seconds; empty for the whole sound
    package,path,sha256   location and digest of the file (see `fetch`)
    licence   the license stated in the copyright file of the package or in the title of the sound
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
    """One row of the catalogue. `start` and `end` are in seconds, None for the start and end of the file."""

    name: str
    role: str
    split: str
    start: float | None
    end: float | None
    source: Source
    license: str


def read_catalogue(path: Path = CATALOGUE) -> list[CatalogueItem]:
    """Read the catalogue. Raises `DataError` with the number of the first invalid line."""
    items = []
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            if row["role"] not in ROLES or row["split"] not in (*SPLITS, "all"):
                raise DataError(
                    f"{path}, line {line}: role {row['role']!r}, split {row['split']!r}; expected a role of "
                    f"{', '.join(ROLES)} and a split of {', '.join(SPLITS)}, all"
                )
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
    """The classes in the order of the catalogue; unseen if test has its own pictures and sounds."""
    names = list(dict.fromkeys(item.name for item in items if item.name))
    return [ClassInfo(name, all(_own_test(items, role, name) for role in ("picture", "sound"))) for name in names]


def select_items(items: list[CatalogueItem], role: str, split: str, name: str = "") -> list[CatalogueItem]:
    """The items of a role (and class) that a split may use. If val has none, it uses those of train."""
    fitting = [item for item in items if item.role == role and item.name == name]
    chosen = [item for item in fitting if item.split in (split, "all")]
    if not chosen and split == "val":
        return select_items(items, role, "train", name)
    return chosen


def _own_test(items: list[CatalogueItem], role: str, name: str) -> bool:
    splits = {item.split for item in items if item.role == role and item.name == name}
    return "test" in splits and "all" not in splits
