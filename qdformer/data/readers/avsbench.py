"""AVSBench as published, one row per clip: S4 (single source), MS3 (multiple sources) and AVSS (semantic).

    S4    s4_meta_data.csv (name,start,category,split)
          visual_frames/{split}/{category}/{name}/{name}_{1..5}.png
          gt_masks/{split}/{category}/{name}/{name}_{1..5}.png     of train the first only
          audio_wav/{split}/{category}/{name}.wav, or audio_log_mel/... .pkl
    MS3   ms3_meta_data.csv (video_id,split)
          visual_frames/{video_id}/{video_id}.mp4_{1..5}.png
          gt_masks/{split}/{video_id}/{video_id}_{1..5}.png
          audio_wav/{split}/{video_id}.wav, or audio_log_mel/... .pkl
    AVSS  metadata.csv (vid,uid,s_min,s_sec,a_obj,split,label), label2idx.json
          {v1s|v1m|v2}/{uid}/frames/{i}.jpg, labels_semantic/{i}.png, audio.wav    i = 0..4, of v2 0..9;
          of v1s train the first label map only

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
from qdformer.utils.tables import read_table

Kind = Literal["s4", "ms3", "avss"]
SplitRule = Literal["published", "youtube_disjoint"]

VIDEO_ID = 11  # characters of a YouTube id, with which the published names begin
BINARY_FRAMES = 5
SEMANTIC_FRAMES = {"v1s": 5, "v1m": 5, "v2": 10}
RECORD_FILE = "dataset.json"


@dataclass(frozen=True)
class Layout:
    """What a published set consists of."""

    table: str
    columns: tuple[str, ...]
    folders: tuple[str, ...]
    audio: tuple[str, ...] = ()
    """Folders of which one is needed, the first that is there is used; none: the sounds lie with the frames."""
    others: tuple[str, ...] = ()
    """Further files."""
    elsewhere: tuple[str, ...] = ()
    """Folders of the other sets, which are published in one tree with this one."""


_AUDIO = ("audio_wav", "audio_log_mel")
LAYOUTS: dict[Kind, Layout] = {
    "s4": Layout(
        "s4_meta_data.csv",
        ("name", "start", "category", "split"),
        ("visual_frames", "gt_masks"),
        _AUDIO,
        elsewhere=("Multi-sources", "ms3_data"),
    ),
    "ms3": Layout(
        "ms3_meta_data.csv",
        ("video_id", "split"),
        ("visual_frames", "gt_masks"),
        _AUDIO,
        elsewhere=("Single-source", "s4_data"),
    ),
    "avss": Layout("metadata.csv", METADATA_COLUMNS, tuple(SEMANTIC_FRAMES), others=("label2idx.json",)),
}


@dataclass(frozen=True)
class DatasetRecord:
    """`dataset.json`: which published set this is, where it came from and how it is split."""

    kind: Kind
    split: SplitRule
    sources: tuple[Mapping[str, str | None], ...] = ()
    """Name and SHA-256 of each archive or file; of a folder the name alone."""
    clips: Mapping[str, int] | None = None
    """How many clips each split has."""
    left_out: Mapping[str, int] | None = None
    """How many the split rule leaves out of each published split."""


def read_dataset_record(root: Path) -> DatasetRecord | None:
    """What `dataset.json` says; None without it: the set was composed here."""
    path = root / RECORD_FILE
    if not path.is_file():
        return None
    try:
        about = DatasetRecord(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: not readable ({error})") from None
    if about.kind not in LAYOUTS or about.split not in get_args(SplitRule):
        raise DataError(f"{path}: kind {about.kind!r}, split {about.split!r}; expected {', '.join(LAYOUTS)}")
    return about


def write_dataset_record(root: Path, about: DatasetRecord) -> None:
    """Write `dataset.json`."""
    (root / RECORD_FILE).write_text(json.dumps(asdict(about), indent=2) + "\n", encoding="utf-8")


def read_class_names(root: Path, kind: Kind) -> tuple[str, ...]:
    """The class names in the order of their ids 1..C. AVSS counts from background = 1: an id is one less."""
    if kind != "avss":
        return (OBJECT,)
    return read_label_index(root / "label2idx.json", first=1)


def read_label_index(path: Path, first: int) -> tuple[str, ...]:
    """The classes of a `label2idx.json` in the order of their ids, which follow that of the background, `first`."""
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
    """The rows of the manifest (`qdformer.data.manifest.read_manifest`) in the published splits."""
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
        "video": name[:VIDEO_ID],
        "subset": subset,
        "split": split,
        "classes": classes,
        "silent": False,
        "off_screen": False,
        "frames": len(images),
        "labeled": len(masks),
        "unseen": True,
        "images": tuple(images),
        "labels": (*masks, *[None] * (len(images) - len(masks))),
        "binary": True,
        "audio": audio,
    }


def read_semantic_rows(root: Path, known: Iterable[str]) -> list[dict[str, Any]]:
    """The rows of `metadata.csv`, of AVSS or of a set composed here, which tells its frames in a column of its own.

    A published object name with a blank in it (there is `h orse`) is read without the blank.
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
            raise DataError(f"{where}: unknown class {unknown[0]!r} in a_obj; expected names of label2idx.json")
        frames = row.get("frames", str(SEMANTIC_FRAMES.get(row["label"], "")))
        if not frames.isdecimal() or int(frames) < 1:
            raise DataError(f"{where}: frames is {frames!r}; expected a whole number from 1")
        frames = int(frames)
        unseen = row.get("unseen", "1")
        if unseen not in ("0", "1"):
            raise DataError(f"{where}: unseen is {unseen!r}; expected 0 or 1")
        labeled = 1 if published and (row["label"], row["split"]) == ("v1s", "train") else frames
        folder = clip_folder(root, row["label"], row["uid"])
        rows.append(
            {
                "uid": row["uid"],
                "video": row["vid"][:VIDEO_ID] if published else "",
                "subset": row["label"],
                "split": row["split"],
                "classes": classes,
                "silent": tokens == [BACKGROUND],
                "off_screen": OFF_SCREEN in tokens,
                "frames": frames,
                "labeled": labeled,
                "unseen": unseen == "1",
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
    """The clips of a manifest without those that leak between the published splits.

    A clip keeps its published split, and is left out if another clip of its video is in a split that comes before
    it in the order test, val, train. So the test split is the published one, clip for clip, the splits share no
    video, and the result depends on the table alone. A clip without a video is one of its own.
    """
    order = {"test": 0, "val": 1, "train": 2}
    rank = clips["split"].map(order)
    video = clips["video"].where(clips["video"] != "", clips["uid"])
    return clips[rank == rank.groupby(video).transform("min")].reset_index(drop=True)
