"""Takes in batches of clips that arrive after the data set was made: good clips are accepted, bad ones set apart.

A batch is a folder below `incoming/` in the AVSBench-Semantic layout (`qdformer.data.layout`); its `metadata.csv` is
written last. Accepted clips join the training split (`qdformer.data.accepted`), whatever split they name. A clip is
bad if a check of the data set finds an error in it, if it is a copy of a clip that is there, or if it belongs to a
video of another split. An interrupted call is repeated as a whole, with the same result.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qdformer.audio.io.read import AudioError, decode_audio
from qdformer.data.accepted import read_accepted, write_accepted
from qdformer.data.checks import check_dataset
from qdformer.data.layout import METADATA_COLUMNS, DataError, clip_folder, is_safe_name
from qdformer.data.manifest import read_manifest
from qdformer.data.readers.avsbench import VIDEO_ID_LENGTH
from qdformer.utils.digests import tree_sha256
from qdformer.utils.files import new_folder, write_rows, write_text
from qdformer.utils.tables import read_table

TABLE, REASON = "metadata.csv", "reason.txt"
_CLASS_FILES = ("label2idx.json", "classes.csv")


@dataclass
class Intake:
    """The result: uids of accepted clips, and the reason of every clip (or whole batch) that was set apart."""

    accepted: list[str] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    """By BATCH/UID, or BATCH."""

    def __bool__(self) -> bool:
        return bool(self.accepted or self.quarantined)


def take_in(
    incoming: Path,
    accepted: Path,
    quarantine: Path,
    dataset: Path,
    min_component_area: float,
    tolerate: Collection[str] = (),
) -> Intake:
    """Move the clips of all complete batches to `accepted` or `quarantine`.

    `dataset` is the data set that they join; the other arguments are those of `check_dataset`. A folder without
    `metadata.csv` is still being written, and is left alone.
    """
    intake = Intake()
    batches = sorted(path.parent for path in incoming.glob("*/" + TABLE)) if incoming.is_dir() else []
    batches = [batch for batch in batches if not batch.name.startswith(".")]
    if not batches:
        return intake
    known = _Known(dataset, accepted)
    for batch in batches:
        try:
            _check_links(batch)
            _add_classes(batch, dataset)
            rows, reasons = _check(batch, min_component_area, tolerate)
        except (DataError, OSError) as error:
            _set_apart(batch, quarantine / batch.name, str(error))
            intake.quarantined[batch.name] = str(error)
            continue
        good = []
        for row in rows:
            uid, folder = row["uid"], clip_folder(batch, row["label"], row["uid"])
            if uid not in reasons and known.has_accepted(row, folder):
                continue  # an interrupted call has accepted it
            if reason := reasons.get(uid) or known.reason_against(row, folder):
                reasons[uid] = reason
                continue
            good.append(row)
            known.add(row, folder)
        _accept(batch, accepted, good)
        intake.accepted += [row["uid"] for row in good]
        for uid, reason in reasons.items():
            found = [clip_folder(batch, row["label"], uid) for row in rows if row["uid"] == uid]
            place = quarantine / batch.name / (uid if is_safe_name(uid) else "unnamed")
            _set_apart(found[0] if found and is_safe_name(uid) else None, place, reason)
            intake.quarantined[f"{batch.name}/{uid}"] = reason
        shutil.rmtree(batch)
    return intake


def withdraw(accepted: Path, quarantine: Path, uids: Collection[str], reason: str) -> None:
    """Move accepted clips to `quarantine`, with the reason; the table of `accepted` no longer names them.

    Raises `DataError`, and moves nothing, if one of them is not among the accepted clips.
    """
    rows = read_accepted(accepted)
    if missing := sorted(set(uids) - {row["uid"] for row in rows}):
        raise DataError(f"{accepted / TABLE}: no accepted clip {', '.join(missing[:5])}; expected uids of this table")
    write_accepted(accepted, [row for row in rows if row["uid"] not in uids])
    for row in rows:
        if row["uid"] in uids:
            _set_apart(clip_folder(accepted, row["label"], row["uid"]), quarantine / "withdrawn" / row["uid"], reason)


class _Known:
    """The clips that are there: their names, videos, and digests of pictures and sounds, by split."""

    def __init__(self, dataset: Path, accepted: Path) -> None:
        self._accepted = {
            row["uid"]: clip_folder(accepted, row["label"], row["uid"]) for row in read_accepted(accepted)
        }
        self._splits: dict[str, str] = {}
        self._videos: dict[str, str] = {}
        self._media: dict[str, str] = {}
        for clip in read_manifest(dataset).itertuples(index=False):
            self._splits[clip.uid] = clip.split
            if clip.video:
                self._videos.setdefault(clip.video, clip.split)
            for digest in _media_digests(clip.images, clip.audio):
                self._media.setdefault(digest, f"{clip.uid} ({clip.split})")
        for uid, folder in self._accepted.items():
            if uid not in self._splits:
                self.add({"uid": uid}, folder)

    def has_accepted(self, row: dict[str, str], folder: Path) -> bool:
        kept = self._accepted.get(row["uid"])
        return kept is not None and tree_sha256(kept) == tree_sha256(folder)

    def reason_against(self, row: dict[str, str], folder: Path) -> str:
        """Why a clip that passed the checks cannot join; '' if it can."""
        if split := self._splits.get(row["uid"]):
            return f"a clip of this name is in the data set already ({split})"
        video = row["vid"][:VIDEO_ID_LENGTH]
        if (split := self._videos.get(video, "train")) != "train":
            return f"its video {video} has clips in the split {split}"
        copies = [self._media[digest] for digest in _media_of(folder) if digest in self._media]
        return f"the same pictures or sound as {copies[0]}" if copies else ""

    def add(self, row: dict[str, str], folder: Path) -> None:
        self._splits[row["uid"]] = "train"
        for digest in _media_of(folder):
            self._media.setdefault(digest, f"{row['uid']} (train)")


def _check(
    batch: Path, min_component_area: float, tolerate: Collection[str]
) -> tuple[list[dict[str, str]], dict[str, str]]:
    """All rows of the batch, and the reason of each bad clip. Rows with errors are left out until the rest is fine."""
    rows = read_table(batch / TABLE, METADATA_COLUMNS, DataError).to_dict("records")
    reasons: dict[str, str] = {}
    kept = [row | {"split": "train"} for row in rows]
    while kept:
        write_rows(batch / TABLE, list(kept[0]), kept)
        report = check_dataset(batch, min_component_area, tolerate)
        errors = [finding for finding in report.findings if finding.severity == "error"]
        if unnamed := [str(finding) for finding in errors if not finding.clip]:
            raise DataError("; ".join(unnamed[:3]))
        for finding in errors:
            reasons.setdefault(finding.clip, ": ".join(filter(None, (finding.file, finding.message))))
        kept = [row for row in kept if row["uid"] not in reasons]
        if not errors or report.files:  # the files were looked at too
            break
    write_rows(batch / TABLE, list(rows[0]) if rows else list(METADATA_COLUMNS), rows)
    return rows, reasons


def _add_classes(batch: Path, dataset: Path) -> None:
    """Give the batch the classes of the data set; raises `DataError` if it has others."""
    for name in _CLASS_FILES:
        own, expected = batch / name, dataset / name
        if not expected.is_file():
            continue
        if own.is_file() and own.read_bytes() != expected.read_bytes():
            raise DataError(f"{name}: the classes and ids differ from those of the data set ({expected})")
        shutil.copyfile(expected, own)


def _check_links(batch: Path) -> None:
    for folder, subfolders, files in os.walk(batch):
        for name in (*subfolders, *files):
            if Path(folder, name).is_symlink():
                raise DataError(f"{Path(folder, name).relative_to(batch)}: a symbolic link; expected files and folders")


def _accept(batch: Path, accepted: Path, rows: list[dict[str, str]]) -> None:
    for row in rows:
        with new_folder(clip_folder(accepted, row["label"], row["uid"])) as partial:
            shutil.copytree(clip_folder(batch, row["label"], row["uid"]), partial, dirs_exist_ok=True)
    if rows:
        write_accepted(accepted, [*read_accepted(accepted), *(row | {"split": "train"} for row in rows)])


def _set_apart(folder: Path | None, place: Path, reason: str) -> None:
    """Move `folder` to `place` (a new name if that is taken) and write the reason beside its files."""
    target, number = place, 1
    while target.exists():
        number += 1
        target = place.with_name(f"{place.name}-{number}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if folder is not None and folder.exists():
        shutil.move(folder, target)
    write_text(target / REASON, reason + "\n")


def _media_of(folder: Path) -> list[str]:
    return _media_digests(sorted((folder / "frames").glob("*.jpg"), key=lambda path: path.name), folder / "audio.wav")


def _media_digests(images: Iterable[Path], audio: Any) -> list[str]:
    """Digests of a clip's pictures together, and of its sound unless that is silent."""
    pictures = hashlib.sha256()
    digests = []
    try:
        for path in sorted(images, key=lambda path: path.name):
            pictures.update(hashlib.sha256(path.read_bytes()).digest())
        digests.append(f"pictures {pictures.hexdigest()}")
        if audio.suffix == ".wav" and decode_audio(audio)[0].any():
            digests.append(f"sound {hashlib.sha256(audio.read_bytes()).hexdigest()}")
    except (OSError, AudioError):
        pass  # an unreadable file is no copy of another; the checks report it
    return digests
