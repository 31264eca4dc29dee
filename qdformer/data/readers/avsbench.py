"""Reads AVSBench as published, one row per clip: S4 (single source), MS3 (multiple sources) and AVSS (semantic).

    S4    s4_meta_data.csv (name,start,category,split)
          visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
          gt_masks/{split}/{category}/{name}/{name}_{1..5}.png     in train only the first
          audio_wav/{split}/{category}/{name}.wav, or audio_log_mel/... .pkl
    MS3   ms3_meta_data.csv (video_id,split)
          visual_frames/{video_id}/{video_id}.mp4_{1..5}.png
          gt_masks/{split}/{video_id}/{video_id}_{1..5}.png
          audio_wav/{split}/{video_id}.wav, or audio_log_mel/... .pkl
    AVSS  metadata.csv (vid,uid,s_min,s_sec,a_obj,split,label), label2idx.json
          {v1s|v1m|v2}/{uid}/frames/{i}.jpg, labels_semantic/{i}.png, audio.wav    i = 0..4, in v2 0..9;
          in the train split of v1s only the first label map

The composed sets have the layout of AVSS with two more columns, so `read_semantic_rows` reads them too. The masks of S4
and MS3 mark the sounding pixels without naming them: their only class is `object`. No clip is opened.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas

from qdformer.data.labels import OBJECT
from qdformer.data.layout import (
    BACKGROUND,
    METADATA_COLUMNS,
    OFF_SCREEN,
    DataError,
    audio_path,
    clip_folder,
    frame_path,
    is_safe_name,
    label_path,
)
from qdformer.utils.constants import SPLITS
from qdformer.utils.files import write_text
from qdformer.utils.tables import read_table

Kind = Literal["s4", "ms3", "avss"]
SplitRule = Literal["published", "youtube_disjoint"]

VIDEO_ID_LENGTH = 11  # characters of a YouTube id, with which the published names begin
BINARY_FRAMES = 5
SEMANTIC_FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}
RECORD_FILE = "dataset.json"


@dataclass(frozen=True)
class Layout:
    """The tables and folders of a published set."""

    table: str
    columns: tuple[str, ...]
    folders: tuple[str, ...]
    audio: tuple[str, ...] = ()
    """Folders of sounds, of which the first that exists is used; empty if the sounds are stored with the frames."""
    others: tuple[str, ...] = ()
    """Further files."""
    other_sets: tuple[str, ...] = ()
    """Folders of other sets that are published in the same tree."""


_AUDIO = ("audio_wav", "audio_log_mel")
LAYOUTS: dict[Kind, Layout] = {
    "s4": Layout(
        "s4_meta_data.csv",
        ("name", "start", "category", "split"),
        ("visual_frames", "gt_masks"),
        _AUDIO,
        other_sets=("Multi-sources", "ms3_data"),
    ),
    "ms3": Layout(
        "ms3_meta_data.csv",
        ("video_id", "split"),
        ("visual_frames", "gt_masks"),
        _AUDIO,
        other_sets=("Single-source", "s4_data"),
    ),
    "avss": Layout("metadata.csv", METADATA_COLUMNS, tuple(SEMANTIC_FRAMES), others=("label2idx.json",)),
}


@dataclass(frozen=True)
class DatasetRecord:
    """Content of `dataset.json`: the published set, its sources and its split rule."""

    kind: Kind
    split: SplitRule
    sources: tuple[Mapping[str, str | None], ...] = ()
    """Name and SHA-256 of each archive or file; for a folder only the name."""
    clips: Mapping[str, int] | None = None
    """Number of clips in each split."""
    left_out: Mapping[str, int] | None = None
    """Number of clips that the split rule excludes from each published split."""


def read_dataset_record(root: Path) -> DatasetRecord | None:
    """Read `dataset.json`; None if it does not exist, as in composed sets."""
    path = root / RECORD_FILE
    if not path.is_file():
        return None
    try:
        record = DatasetRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not a readable record ({error})") from None
    if record.kind not in LAYOUTS or record.split not in get_args(SplitRule):
        kinds, rules = ", ".join(LAYOUTS), ", ".join(get_args(SplitRule))
        raise DataError(f"{path}: kind {record.kind!r}, split {record.split!r}; expected one of {kinds} and of {rules}")
    return record


def write_dataset_record(root: Path, record: DatasetRecord) -> None:
    """Write `dataset.json`."""
    write_text(root / RECORD_FILE, json.dumps(asdict(record), indent=2) + "\n")


def read_class_names(root: Path, kind: Kind) -> tuple[str, ...]:
    """The class names in the order of their ids 1..C. AVSS numbers its background 1, so its ids are reduced by 1."""
    if kind != "avss":
        return (OBJECT,)
    return read_label_index(root / "label2idx.json", first=1)


def read_label_index(path: Path, first: int) -> tuple[str, ...]:
    """The classes of a `label2idx.json` in the order of their ids, which continue from `first`, the background."""
    try:
        indices = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: missing; expected the class names and their ids") from None
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from None
    ids = range(first, first + len(indices)) if isinstance(indices, dict) else ()
    if not isinstance(indices, dict) or set(map(str, indices.values())) != set(map(str, ids)):
        raise DataError(
            f'{path}: expected ids counting up from {first}, as in {{"{BACKGROUND}": {first}, "dog": {first + 1}}}'
        )
    if indices.get(BACKGROUND) != first or len(indices) < 2:
        raise DataError(f"{path}: expected {BACKGROUND} with id {first} and at least one class")
    return tuple(sorted(indices, key=lambda name: int(indices[name]))[1:])


def read_published_rows(root: Path, kind: Kind) -> list[dict[str, Any]]:
    """The rows of the manifest (see `qdformer.data.manifest.read_manifest`) in the published splits.

    Raises `DataError` for a row that cannot be used.
    """
    if kind == "avss":
        return read_semantic_rows(root, read_class_names(root, kind))
    layout = LAYOUTS[kind]
    path = root / layout.table
    table = read_table(path, layout.columns, DataError)
    audio = next((name for name in layout.audio if (root / name).is_dir()), layout.audio[0])
    read = _read_s4 if kind == "s4" else _read_ms3
    rows = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        where = f"{path}, line {line}, clip {row[layout.columns[0]]!r}"
        names = {column: row[column] for column in layout.columns if column not in ("start", "split")}
        _check_names(where, names, row["split"])
        rows.append(read(root, audio, row))
    return rows


def read_splits(root: Path, kind: Kind) -> pandas.DataFrame:
    """The columns uid, video and split of every row of the table, not validated."""
    layout = LAYOUTS[kind]
    table = read_table(root / layout.table, layout.columns, DataError)
    video = table[layout.columns[0]]
    uid = table["uid"] if kind == "avss" else video
    return pandas.DataFrame({"uid": uid, "video": video.str[:VIDEO_ID_LENGTH], "split": table["split"]})


def _read_s4(root: Path, audio: str, row: Mapping[str, str]) -> dict[str, Any]:
    name, split = row["name"], row["split"]
    inner = Path(split, row["category"], name)
    labeled = 1 if split == "train" else BINARY_FRAMES
    images = [root / "visual_frames" / inner / f"{name}_{index}.png" for index in range(1, BINARY_FRAMES + 1)]
    masks = [root / "gt_masks" / inner / f"{name}_{index}.png" for index in range(1, labeled + 1)]
    return _binary_row(name, "s4", split, (row["category"],), images, masks, _sound(root, audio, inner))


def _read_ms3(root: Path, audio: str, row: Mapping[str, str]) -> dict[str, Any]:
    name, split = row["video_id"], row["split"]
    images = [root / "visual_frames" / name / f"{name}.mp4_{index}.png" for index in range(1, BINARY_FRAMES + 1)]
    masks = [root / "gt_masks" / split / name / f"{name}_{index}.png" for index in range(1, BINARY_FRAMES + 1)]
    return _binary_row(name, "ms3", split, (), images, masks, _sound(root, audio, Path(split, name)))


def _sound(root: Path, audio: str, inner: Path) -> Path:
    return root / audio / inner.with_name(inner.name + (".wav" if audio == "audio_wav" else ".pkl"))


def _binary_row(
    name: str, subset: str, split: str, classes: tuple[str, ...], images: list[Path], masks: list[Path], audio: Path
) -> dict[str, Any]:
    return {
        "uid": name,
        "video": name[:VIDEO_ID_LENGTH],
        "subset": subset,
        "split": split,
        "classes": classes,
        "silent": False,
        "off_screen": False,
        "frames": len(images),
        "labeled": len(masks),
        "unseen": True,
        "visible": None,
        "images": tuple(images),
        "labels": (*masks, *[None] * (len(images) - len(masks))),
        "binary": True,
        "audio": audio,
    }


def read_semantic_rows(root: Path, known: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of `metadata.csv` of AVSS or of a composed set, which has a column for the number of frames.

    Spaces in published object names (there is `h orse`) are removed. Raises `DataError` for a row that cannot be used.
    """
    path = root / "metadata.csv"
    table = read_table(path, METADATA_COLUMNS, DataError)
    published, known = "frames" not in table.columns, set(known)
    rows = []
    for line, row in enumerate(table.to_dict("records"), start=2):
        where = f"{path}, line {line}, clip {row['uid']!r}"
        _check_names(where, {"uid": row["uid"], "label": row["label"]}, row["split"])
        tokens = (row["a_obj"].replace(" ", "") if published else row["a_obj"]).split("_")
        classes = tuple(token for token in tokens if token not in (BACKGROUND, OFF_SCREEN))
        if unknown := [name for name in classes if name not in known]:
            raise DataError(f"{where}: unknown class {unknown[0]!r} in a_obj; expected the names of label2idx.json")
        count = row.get("frames", str(SEMANTIC_FRAMES.get(row["label"], "")))
        if not count.isdecimal() or int(count) < 1:
            raise DataError(f"{where}: frames is {count!r}; expected a positive integer")
        frames = int(count)
        unseen = row.get("unseen", "1")
        if unseen not in ("0", "1"):
            raise DataError(f"{where}: unseen is {unseen!r}; expected 0 or 1")
        visible = row.get("visible")
        labeled = 1 if published and (row["label"], row["split"]) == ("v1s", "train") else frames
        folder = clip_folder(root, row["label"], row["uid"])
        rows.append(
            {
                "uid": row["uid"],
                "video": row["vid"][:VIDEO_ID_LENGTH] if published else "",
                "subset": row["label"],
                "split": row["split"],
                "classes": classes,
                "silent": tokens == [BACKGROUND],
                "off_screen": OFF_SCREEN in tokens,
                "frames": frames,
                "labeled": labeled,
                "unseen": unseen == "1",
                "visible": None if visible is None else tuple(filter(None, visible.split("_"))),
                "images": tuple(frame_path(folder, index) for index in range(frames)),
                "labels": tuple(label_path(folder, index) if index < labeled else None for index in range(frames)),
                "binary": False,
                "audio": audio_path(folder),
            }
        )
    return rows


def _check_names(where: str, names: Mapping[str, str], split: str) -> None:
    for column, name in names.items():
        if not is_safe_name(name):
            raise DataError(f"{where}: {column} {name!r} is not a plain name; expected no '/' and no '..'")
    if split not in SPLITS:
        raise DataError(f"{where}: unknown split {split!r}; expected {', '.join(SPLITS)}")


def youtube_disjoint(clips: pandas.DataFrame) -> pandas.DataFrame:
    """Remove the clips that leak between the published splits. `clips` has the columns uid, video and split.

    A clip is removed if another clip of its video is in a split that precedes its own in the order test, val, train.
    The test split is therefore unchanged, no two splits share a video, and the result depends only on the table. A
    clip without a video counts as a video of its own. Clips of an unknown split are kept, for the checks to report.
    """
    order = {"test": 0, "val": 1, "train": 2}
    rank = clips["split"].map(order)
    video = clips["video"].where(clips["video"] != "", clips["uid"])
    keep = (rank == rank.groupby(video).transform("min")) | rank.isna()
    return clips[keep].reset_index(drop=True)
