"""Checks the lists of a data set without opening a clip, so 12,000 rows take a second.

It reads the published lists of AVSBench (S4, MS3 and AVSS, distinguished by their columns) and `metadata.csv` as
written by `layout`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import pandas

from qdformer.data.checks.findings import Finding, Report, SplitOverlap, VideoSpan, make_finding, make_report
from qdformer.data.layout import BACKGROUND, OFF_SCREEN, DataError, is_safe_name
from qdformer.data.readers.avsbench import LAYOUTS, VIDEO_ID_LENGTH, Kind, youtube_disjoint
from qdformer.utils.constants import SPLITS
from qdformer.utils.tables import read_table

_PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_MIN_SIMILARITY = 0.8  # by difflib, of a misspelled name and the class that it means


@dataclass(frozen=True)
class Publication:
    """A published list: the number of clips in its splits, and the number that its paper states."""

    kind: Kind
    clips: Mapping[str, int]
    stated: int


PUBLICATIONS = (
    Publication("s4", {"train": 3452, "val": 740, "test": 740}, 4932),
    Publication("ms3", {"train": 296, "val": 64, "test": 64}, 424),
    Publication("avss", {"train": 8498, "val": 1304, "test": 1554}, 12356),
)
"""AVSBench (Zhou et al., ECCV 2022) and AVSBench-Semantic (Zhou et al., 2023). The list of the latter is shorter than
its paper states."""


@dataclass(frozen=True)
class ClipList:
    """A list of clips.

    `counts` has the number of rows in each split. `rows` has the rows that are used, with the columns line (in the
    file), uid, video ('' if there is none), subset, split and names (tuple of the categories as written).
    `publication` is the published list that this is; `classes` are the class names stored beside the list.
    """

    path: Path
    counts: Mapping[str, int]
    rows: pandas.DataFrame
    publication: Publication | None
    classes: frozenset[str] | None

    def youtube_disjoint(self) -> ClipList:
        """The list without the clips that the split rule `youtube_disjoint` excludes."""
        return replace(self, rows=youtube_disjoint(self.rows))


def check_clip_list(path: str | Path) -> Report:
    """Check a list of clips without its media. Raises `DataError` if it is missing or of an unknown kind."""
    clips = read_list(Path(path))
    return make_report(
        str(path),
        clips_per_split(clips.rows["split"]),
        0,
        check_list(clips),
        sharing=split_overlaps(clips.rows),
        spanning=video_spans(clips.rows),
    )


def clips_per_split(splits: Iterable[str]) -> dict[str, int]:
    """The number of clips in each split, the known splits first."""
    counts = Counter(splits)
    return {split: counts[split] for split in (*SPLITS, *sorted(set(counts) - set(SPLITS))) if counts[split]}


def read_list(path: Path) -> ClipList:
    """Read a list with the columns of a published list or of `layout`. The rows are not validated."""
    table = read_table(path, ("split",), DataError)
    columns = list(table.columns)
    publication = next((one for one in PUBLICATIONS if set(LAYOUTS[one.kind].columns) <= set(columns)), None)
    if publication is None:
        expected = "; ".join(",".join(LAYOUTS[one.kind].columns) for one in PUBLICATIONS)
        raise DataError(f"{path}: its columns are {','.join(columns)}; expected those of a published list: {expected}")
    if "frames" in columns:  # composed clips have no source video
        publication = None
    rows = pandas.DataFrame({"line": range(2, len(table) + 2), "split": table["split"]})
    names: Iterable[Iterable[str]]
    if "a_obj" in columns:
        uid, video, subset, names = table["uid"], table["vid"], table["label"], table["a_obj"].str.split("_")
    elif "category" in columns:
        uid, video, subset, names = table["name"], table["name"], "", ([name] for name in table["category"])
    else:
        uid, video, subset, names = table["video_id"], table["video_id"], "", ([] for _ in table["video_id"])
    rows["uid"], rows["subset"], rows["names"] = uid, subset, [tuple(row) for row in names]
    rows["video"] = video.str[:VIDEO_ID_LENGTH] if publication else ""
    return ClipList(
        path, clips_per_split(rows["split"]), rows, publication, _read_class_names(path) if "a_obj" in columns else None
    )


def _read_class_names(table: Path) -> frozenset[str] | None:
    path = table.with_name("label2idx.json")
    try:
        return frozenset(json.loads(path.read_text(encoding="utf-8"))) - {BACKGROUND}
    except FileNotFoundError:
        return None
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: not valid JSON with the class names ({error})") from None


def check_list(clips: ClipList) -> Iterator[Finding]:
    """Yield every problem that can be found in the rows alone."""
    if clips.rows.empty:
        raise DataError(f"{clips.path}: no clips; expected one row per clip")
    where = clips.path.name
    known = clips.classes if clips.classes is not None else _plain_names(clips.rows["names"])
    meant = {
        name: closest_class(name, known) for name in _all_names(clips.rows["names"]) - known - {BACKGROUND, OFF_SCREEN}
    }
    yield from _check_counts(clips)
    seen: dict[str, int] = {}
    for row in clips.rows.itertuples(index=False):
        for problem in _row_problems(row):
            yield make_finding("bad-row", f"line {row.line}: {problem}", clip=row.uid, file=where)
        if row.uid in seen:
            message = f"line {row.line}: the same clip as in line {seen[row.uid]}"
            yield make_finding("duplicate-uid", message, clip=row.uid, file=where)
        seen.setdefault(row.uid, row.line)
        if OFF_SCREEN in row.names:
            yield make_finding("off-screen-row", f"line {row.line}: {'_'.join(row.names)}", clip=row.uid, file=where)
        if BACKGROUND in row.names:
            yield make_finding("background-row", f"line {row.line}: {'_'.join(row.names)}", clip=row.uid, file=where)
        for name in row.names:
            if name not in meant:
                continue
            if likely := meant[name]:
                message = f"line {row.line}: {name!r} is not a class; probably {likely!r} is meant"
                finding = make_finding("class-typo", message, clip=row.uid, file=where, name=name, likely=likely)
                read = clips.publication and name.replace(" ", "") == likely  # as `read_semantic_rows` reads it
                yield finding if read else replace(finding, severity="error")
            else:
                yield make_finding(
                    "unknown-class", f"line {row.line}: {name!r} is not a class", clip=row.uid, file=where
                )
    yield from _check_classes(clips.rows, known, where)
    yield from _check_videos(clips.rows, where)


def closest_class(name: str, classes: Collection[str]) -> str | None:
    """The class that `name` probably means: it differs only in spaces and case, or in one or two letters."""

    def normalized(text: str) -> str:
        return re.sub(r"\s", "", text).lower()

    same = sorted(one for one in classes if normalized(one) == normalized(name))
    candidates = same or difflib.get_close_matches(name, sorted(classes), 1, _MIN_SIMILARITY)
    return candidates[0] if candidates else None


def _all_names(names: Iterable[tuple[str, ...]]) -> set[str]:
    return {name for row in names for name in row}


def _plain_names(names: Iterable[tuple[str, ...]]) -> frozenset[str]:
    """The names that are spelled like classes; they serve as classes if there is no list of classes."""
    return frozenset(name for name in _all_names(names) if _PLAIN_NAME.fullmatch(name)) - {BACKGROUND, OFF_SCREEN}


def _row_problems(row) -> Iterator[str]:
    for name in filter(None, (row.uid, row.subset)):
        if not is_safe_name(name):
            yield f"{name!r} is not a plain name; expected no '/' and no '..'"
    if not row.uid:
        yield "the name is empty; expected the uid of the clip"
    if row.split not in SPLITS:
        yield f"unknown split {row.split!r}; expected {', '.join(SPLITS)}"


def _check_counts(clips: ClipList) -> Iterator[Finding]:
    if (publication := clips.publication) is None:
        return
    where, name, total = clips.path.name, publication.kind.upper(), sum(clips.counts.values())
    if total != publication.stated:
        message = f"{total:,} clips; the paper of {name} states {publication.stated:,}"
        yield make_finding("row-count", message, file=where, clips=total, stated=publication.stated)
    for split, stated in publication.clips.items():
        if (count := clips.counts.get(split, 0)) != stated:
            message = f"{count:,} clips in {split}; the published list of {name} has {stated:,}"
            yield make_finding("row-count", message, file=where, split=split, clips=count, stated=stated)


def _check_classes(rows: pandas.DataFrame, known: Collection[str], where: str) -> Iterator[Finding]:
    for split in clips_per_split(rows["split"]):
        present = _all_names(rows["names"][rows["split"] == split])
        if absent := sorted(set(known) - present):
            count = "1 class" if len(absent) == 1 else f"{len(absent)} classes"
            message = f"{count} in no clip of {split}: {', '.join(absent)}"
            yield make_finding("absent-class", message, file=where, split=split, classes=absent)


def _check_videos(rows: pandas.DataFrame, where: str) -> Iterator[Finding]:
    taken = rows[rows["video"] != ""]
    spanning = taken[taken.groupby("video")["split"].transform("nunique") > 1]
    for video, clips in spanning.groupby("video", sort=True):
        uids = {split: clips["uid"][clips["split"] == split].tolist() for split in clips_per_split(clips["split"])}
        message = f"video {video}: " + "; ".join(f"{split} {', '.join(names)}" for split, names in uids.items())
        yield make_finding("shared-video", message, file=where, video=video, clips=uids)


def split_overlaps(rows: pandas.DataFrame) -> tuple[SplitOverlap, ...]:
    """Count the clips that share a video with an earlier split, for each pair of splits and each subset."""
    taken = rows[rows["video"] != ""]
    videos = {split: set(taken["video"][taken["split"] == split]) for split in clips_per_split(taken["split"])}
    subsets = sorted(set(taken["subset"]))
    table = []
    for other, split in combinations(videos, 2):
        for subset in ["", *(subsets if len(subsets) > 1 else [])]:
            ours = taken[(taken["split"] == split) & ((taken["subset"] == subset) if subset else True)]
            shared = ours[ours["video"].isin(videos[other])]
            if len(shared):
                table.append(SplitOverlap(subset, split, other, len(shared), len(ours), shared["video"].nunique()))
    return tuple(table)


def video_spans(rows: pandas.DataFrame) -> tuple[VideoSpan, ...]:
    """The number of videos with clips in more than one split: over all rows, and within each subset."""
    taken = rows[rows["video"] != ""]
    subsets = sorted(set(taken["subset"]))
    groups = {"": taken} if len(taken) else {}
    if len(subsets) > 1:
        groups |= {subset: taken[taken["subset"] == subset] for subset in subsets}
    splits = {subset: group.groupby("video")["split"].nunique() for subset, group in groups.items()}
    return tuple(VideoSpan(subset, int((counts > 1).sum()), len(counts)) for subset, counts in splits.items())
