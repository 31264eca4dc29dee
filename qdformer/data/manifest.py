"""Reads the tables of a data set: one row per clip for every source.

No clip is opened; the checks do that. Every problem raises a `DataError` that names the file and the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas

from qdformer.data.labels import OBJECT
from qdformer.data.layout import DataError
from qdformer.data.readers.avsbench import (
    LAYOUTS,
    read_class_names,
    read_dataset_record,
    read_label_index,
    read_published_rows,
    read_semantic_rows,
    youtube_disjoint,
)
from qdformer.utils.tables import read_table

if TYPE_CHECKING:
    from qdformer.config.train import Task


@dataclass(frozen=True)
class Classes:
    """The object classes in the order of their ids 1..C (0 is the background).

    `unseen[i]`: the pictures and recordings of class i + 1 in the test split do not occur in training.
    """

    names: tuple[str, ...]
    unseen: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.names)

    def id(self, name: str) -> int:
        """The id of a class in label maps."""
        return self.names.index(name) + 1


def read_classes(root: str | Path) -> Classes:
    """Read the classes of a data set from `label2idx.json` and `classes.csv`, which must agree.

    A published set has no `classes.csv`; all of its classes count as unseen, because its test clips are recordings of
    their own.
    """
    root = Path(root)
    if record := read_dataset_record(root):
        names = read_class_names(root, record.kind)
        return Classes(names, (True,) * len(names))
    index_path, table_path = root / "label2idx.json", root / "classes.csv"
    names = read_label_index(index_path, first=0)

    table = read_table(table_path, ("id", "name", "unseen"), DataError)
    expected = [(str(index), name) for index, name in enumerate(names, start=1)]
    if list(zip(table["id"], table["name"], strict=True)) != expected:
        raise DataError(f"{table_path}: its ids and names differ from those of {index_path.name}")
    if not table["unseen"].isin(["0", "1"]).all():
        raise DataError(f"{table_path}: column unseen must hold 0 or 1")
    return Classes(names, tuple(value == "1" for value in table["unseen"]))


def task_classes(classes: Classes, task: Task) -> Classes:
    """The classes that the task distinguishes: all of them, or the single class `object` with `avs`."""
    return classes if task == "avss" else Classes((OBJECT,), (all(classes.unseen),))


def read_sounding_names(root: str | Path) -> tuple[str, ...]:
    """The names of the objects that can sound in the clips; empty if the set does not name them, as in MS3.

    These are the classes; in S4, whose only class is `object`, the categories.
    """
    record = read_dataset_record(Path(root))
    if record is None or record.kind == "avss":
        return read_classes(root).names
    return tuple(sorted({name for names in read_manifest(root)["classes"] for name in names}))


def table_path(root: Path) -> Path:
    """The path of the table of clips."""
    record = read_dataset_record(root)
    return root / (LAYOUTS[record.kind].table if record else "metadata.csv")


def read_manifest(root: str | Path) -> pandas.DataFrame:
    """One row per clip, in the order of the table.

    Columns:
        uid (str)
        video (str): the YouTube id, '' if there is none
        subset (str)
        split (str): 'train', 'val' or 'test'
        classes (tuple of str): the classes that sound while they are visible
        silent (bool): nothing sounds, inside or outside the picture
        off_screen (bool): the table names a sound from outside the picture
        frames (int): T
        labeled (int): how many frames, counted from the first, have a label map
        unseen (bool): all classes of the clip are unseen ones
        visible (tuple of str): the classes of all objects in the picture, sounding or not; None if not recorded
        images (tuple of T Paths)
        labels (tuple of T Paths): None for a frame without a label map
        binary (bool): the label files are masks instead of class ids
        audio (Path)

    A published set is split by the rule in its `dataset.json`. Raises `DataError` for a row that cannot be used and
    for a uid that occurs twice.
    """
    root = Path(root)
    clips = read_clips(root)
    repeated = clips["uid"].duplicated()
    if repeated.any():
        uid = clips["uid"][repeated].iloc[0]
        raise DataError(f"{table_path(root)}: clip {uid!r} is listed twice; uids must be unique")
    return clips


def read_clips(root: Path) -> pandas.DataFrame:
    """As `read_manifest`, but with every row of a uid that occurs more than once."""
    record, table = read_dataset_record(root), table_path(root)
    if not table.is_file():
        raise DataError(f"{table}: missing; the stage download writes it")
    rows = read_published_rows(root, record.kind) if record else read_semantic_rows(root, read_classes(root).names)
    clips = pandas.DataFrame(rows)
    if clips.empty:
        raise DataError(f"{table}: no clips; expected one row per clip")
    return youtube_disjoint(clips) if record and record.split == "youtube_disjoint" else clips
