"""Reading a data set's tables: one row per clip, whatever the source.

Opens no clip; `checks` does. Every problem is a `DataError` that names the file and the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas

from qdformer.config.train import Task
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


@dataclass(frozen=True)
class Classes:
    """The object classes in the order of their ids 1..C (0 is background).

    `unseen[i]`: the test split shows pictures or recordings of class i + 1 that training never holds.
    """

    names: tuple[str, ...]
    unseen: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.names)

    def id(self, name: str) -> int:
        """The class id of `name` in label maps."""
        return self.names.index(name) + 1


def read_classes(root: str | Path) -> Classes:
    """The classes of a data set: from `label2idx.json` and `classes.csv`, which must agree.

    A published set has no `classes.csv`: its test clips all show other recordings than training does.
    """
    root = Path(root)
    if about := read_dataset_record(root):
        names = read_class_names(root, about.kind)
        return Classes(names, (True,) * len(names))
    index_path, table_path = root / "label2idx.json", root / "classes.csv"
    names = read_label_index(index_path, first=0)

    table = read_table(table_path, ("id", "name", "unseen"), DataError)
    expected = [(str(index), name) for index, name in enumerate(names, start=1)]
    if list(zip(table["id"], table["name"], strict=True)) != expected:
        raise DataError(f"{table_path}: its ids and names are not those of {index_path.name}")
    if not table["unseen"].isin(["0", "1"]).all():
        raise DataError(f"{table_path}: column unseen must hold 0 or 1")
    return Classes(names, tuple(value == "1" for value in table["unseen"]))


def task_classes(classes: Classes, task: Task) -> Classes:
    """The classes that the task tells apart: all of them, or with `avs` the one object."""
    return classes if task == "avss" else Classes((OBJECT,), (all(classes.unseen),))


def read_sounding_names(root: str | Path) -> tuple[str, ...]:
    """The names of what the clips can show sounding; none where the set does not name it, as MS3.

    They are the classes, and in S4, whose one class is the object, the categories.
    """
    about = read_dataset_record(Path(root))
    if about is None or about.kind == "avss":
        return read_classes(root).names
    return tuple(sorted({name for names in read_manifest(root)["classes"] for name in names}))


def table_path(root: Path) -> Path:
    """The data set's table of clips."""
    about = read_dataset_record(root)
    return root / (LAYOUTS[about.kind].table if about else "metadata.csv")


def read_manifest(root: str | Path) -> pandas.DataFrame:
    """One row per clip, in the order of the data set's table.

    Columns: uid, video (the YouTube id, '' where there is none), subset (str), split ('train',
    'val', 'test'), classes (tuple of the names that sound while visible), silent (bool: nothing
    sounds, in or out of the picture), off_screen (bool: the table names a sound from out of the
    picture), frames (int: T), labeled (int: how many frames, from the
    first, have a label map), unseen (bool), images (tuple of T Paths), labels (tuple of T Paths,
    None for a frame without a label map), binary (bool: the label files are masks, not class ids),
    audio (Path). A published set is split by the rule in its `dataset.json`.
    """
    root = Path(root)
    about, table = read_dataset_record(root), table_path(root)
    if not table.is_file():
        raise DataError(f"{table}: missing; the stage download writes it")
    rows = read_published_rows(root, about.kind) if about else read_semantic_rows(root, read_classes(root).names)
    manifest = pandas.DataFrame(rows)
    if manifest.empty:
        raise DataError(f"{table}: no clips; expected a row for each")
    if (repeated := manifest["uid"].duplicated()).any():
        raise DataError(f"{table}: clip {manifest['uid'][repeated].iloc[0]!r} is listed twice; uids must be unique")
    return youtube_disjoint(manifest) if about and about.split == "youtube_disjoint" else manifest
