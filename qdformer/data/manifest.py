"""Reading a data set's tables: one row per clip, whatever the source.

Opens no clip; `checks` does. Every problem is a `DataError` that names the file and the row.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pandas

from qdformer.data.layout import (
    BACKGROUND,
    METADATA_COLUMNS,
    OFF_SCREEN,
    SOUND_COLUMNS,
    SPLITS,
    DataError,
    audio_path,
    clip_folder,
    frame_path,
    is_safe_name,
    label_path,
)

VIDEO_ID = 11  # characters of a YouTube id, with which the published names begin
_PUBLISHED_FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}  # AVSBench-Semantic has no column for it


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
    """Read `label2idx.json` and `classes.csv`, which must agree."""
    root = Path(root)
    index_path, table_path = root / "label2idx.json", root / "classes.csv"
    try:
        indices = json.loads(index_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{index_path}: missing; expected the class names and their ids") from None
    except ValueError as error:
        raise DataError(f"{index_path}: not valid JSON ({error})") from None
    if not isinstance(indices, dict) or list(indices.values()) != list(range(len(indices))):
        raise DataError(f'{index_path}: expected ids counting up from 0, as in {{"{BACKGROUND}": 0, "dog": 1}}')
    if next(iter(indices), None) != BACKGROUND or len(indices) < 2:
        raise DataError(f"{index_path}: expected {BACKGROUND} with id 0 and at least one class")
    names = tuple(indices)[1:]

    table = read_table(table_path, ("id", "name", "unseen"))
    expected = [(str(index), name) for index, name in enumerate(names, start=1)]
    if list(zip(table["id"], table["name"], strict=True)) != expected:
        raise DataError(f"{table_path}: its ids and names are not those of {index_path.name}")
    if not table["unseen"].isin(["0", "1"]).all():
        raise DataError(f"{table_path}: column unseen must hold 0 or 1")
    return Classes(names, tuple(value == "1" for value in table["unseen"]))


def read_manifest(root: str | Path) -> pandas.DataFrame:
    """Read `metadata.csv`; one row per clip, in the file's order.

    Columns: uid, video (the YouTube id, '' where there is none), subset (str), split ('train',
    'val', 'test'), classes (tuple of the names that sound while visible), silent (bool: nothing
    sounds, in or out of the picture), frames (int: T), labelled (int: how many frames, from the
    first, have a label map), unseen (bool), images (tuple of T Paths), labels (tuple of T Paths,
    None for a frame without a label map), audio (Path).
    """
    root = Path(root)
    path = root / "metadata.csv"
    table = read_table(path, METADATA_COLUMNS)
    known = set(read_classes(root).names)
    rows = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        where = f"{path}, line {line}, clip {row['uid']!r}"
        for column in ("uid", "label"):
            if not is_safe_name(row[column]):
                raise DataError(f"{where}: {column} {row[column]!r} is not a plain name; expected no '/' and no '..'")
        if row["split"] not in SPLITS:
            raise DataError(f"{where}: unknown split {row['split']!r}; expected {', '.join(SPLITS)}")
        tokens = row["a_obj"].split("_")
        classes = tuple(token for token in tokens if token not in (BACKGROUND, OFF_SCREEN))
        if unknown := [name for name in classes if name not in known]:
            raise DataError(f"{where}: unknown class {unknown[0]!r} in a_obj; expected names of label2idx.json")
        frames = row.get("frames", str(_PUBLISHED_FRAMES.get(row["label"], "")))
        if not frames.isdecimal() or int(frames) < 1:
            raise DataError(f"{where}: frames is {frames!r}; expected a whole number from 1")
        unseen = row.get("unseen", "0")
        if unseen not in ("0", "1"):
            raise DataError(f"{where}: unseen is {unseen!r}; expected 0 or 1")
        folder = clip_folder(root, row["label"], row["uid"])
        rows.append(
            {
                "uid": row["uid"],
                "video": "" if "frames" in row else row["vid"][:VIDEO_ID],  # composed clips come from no video
                "subset": row["label"],
                "split": row["split"],
                "classes": classes,
                "silent": tokens == [BACKGROUND],
                "frames": int(frames),
                "labelled": int(frames),
                "unseen": unseen == "1",
                "images": tuple(frame_path(folder, index) for index in range(int(frames))),
                "labels": tuple(label_path(folder, index) for index in range(int(frames))),
                "audio": audio_path(folder),
            }
        )
    manifest = pandas.DataFrame(rows)
    if manifest.empty:
        raise DataError(f"{path}: no clips; expected a row for each")
    if (repeated := manifest["uid"].duplicated()).any():
        raise DataError(f"{path}: clip {manifest['uid'][repeated].iloc[0]!r} is listed twice; uids must be unique")
    return manifest


def read_sounds(root: str | Path) -> pandas.DataFrame:
    """Read `sounds.csv`; one row per sound, in the file's order.

    Columns: path (Path, with `root`), role ('source' or 'noise'), split, label (class name, '' for noise).
    A sound that serves several splits has a row for each.
    """
    root = Path(root)
    path = root / "sounds.csv"
    table = read_table(path, SOUND_COLUMNS)
    for line, row in enumerate(table.to_dict("records"), start=2):
        where = f"{path}, line {line}, sound {row['path']!r}"
        relative = PurePosixPath(row["path"])
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise DataError(f"{where}: expected a path inside {root}")
        if row["role"] not in ("source", "noise"):
            raise DataError(f"{where}: unknown role {row['role']!r}; expected source or noise")
        if row["split"] not in SPLITS:
            raise DataError(f"{where}: unknown split {row['split']!r}; expected {', '.join(SPLITS)}")
        if bool(row["label"]) != (row["role"] == "source"):
            raise DataError(f"{where}: label is {row['label']!r}; expected a class for a source, nothing for noise")
    if repeated := table["path"][table.duplicated(["path", "split"])].tolist():
        raise DataError(f"{path}: sound {repeated[0]!r} is listed twice for one split")
    return table[list(SOUND_COLUMNS)].assign(path=[root / value for value in table["path"]])


def read_table(path: Path, columns: tuple[str, ...]) -> pandas.DataFrame:
    """All cells as text; `DataError` if the file is missing, broken or lacks one of `columns`."""
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; expected a table with the columns {', '.join(columns)}") from None
    except (pandas.errors.ParserError, pandas.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable table ({error})") from None
    if missing := [name for name in columns if name not in table.columns]:
        raise DataError(f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)}")
    return table
