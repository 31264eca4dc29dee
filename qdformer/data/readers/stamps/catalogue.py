"""The catalogue of the files that are used: their packages, roles and splits.

`catalogue.csv` holds one row per picture or (part of a) sound. Its columns:

    class     the object class; empty for clutter, backgrounds and noise
    role      picture (cut-out of the class), sound (recording of the class), clutter (cut-out of a silent object of
              no class), background (photo) or noise (sound of no class)
    split     train, val or test; all if the class has only one such file, which then serves every split
    start,end the used part of a sound in seconds; empty for the whole sound
    instrument,takes   for a soundfont: who plays (see `melodies`), and the number of melodies; each is one recording
    package,path,sha256   location and digest of the file (see `fetch`)
    licence   the license stated in the copyright file of the package or in the title of the sound

`outlines.csv` cuts objects out of photos that have no alpha channel: the SHA-256 of the photo and the corners of a
polygon, as thousandths of width and height.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from pathlib import Path

from qdformer.data.layout import ClassInfo, DataError
from qdformer.data.readers.stamps.fetch import Source
from qdformer.data.readers.stamps.melodies import INSTRUMENTS
from qdformer.utils.constants import SPLITS

CATALOGUE = Path(__file__).with_name("catalogue.csv")
OUTLINES = Path(__file__).with_name("outlines.csv")
ROLES = ("picture", "sound", "clutter", "background", "noise")


@dataclass(frozen=True)
class CatalogueItem:
    """One row of the catalogue, or one of the melodies that a row stands for.

    `start` and `end` are in seconds, None for the start and end of the file. `take` is the number of a melody among
    those of its instrument and split; `instrument` is empty and `take` 0 for everything else.
    """

    name: str
    role: str
    split: str
    start: float | None
    end: float | None
    source: Source
    license: str
    instrument: str = ""
    take: int = 0


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
            if row["instrument"] and row["instrument"] not in INSTRUMENTS:
                raise DataError(
                    f"{path}, line {line}: unknown instrument {row['instrument']!r}; expected {', '.join(INSTRUMENTS)}"
                )
            item = CatalogueItem(
                name=row["class"],
                role=row["role"],
                split=row["split"],
                start=float(row["start"]) if row["start"] else None,
                end=float(row["end"]) if row["end"] else None,
                source=Source(row["package"], row["path"], row["sha256"]),
                license=row["licence"],
                instrument=row["instrument"],
            )
            items += [replace(item, take=take) for take in range(int(row["takes"] or 1))]
    return items


def read_outlines(path: Path = OUTLINES) -> dict[str, list[tuple[float, float]]]:
    """Polygons by the SHA-256 of their photo: corners (x, y) as fractions of its width and height."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        row["sha256"]: [
            (int(x) / 1000, int(y) / 1000) for x, y in (point.split(":") for point in row["points"].split())
        ]
        for row in rows
    }


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
