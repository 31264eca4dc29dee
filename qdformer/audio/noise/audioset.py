"""AudioSet: its segment lists, its ontology, and which segments may serve as background noise.

The lists and the ontology are the published files (Gemmeke et al., "Audio Set: An ontology and human-labeled
dataset for audio events", ICASSP 2017). A segment is fit for noise if it carries one of the labels
asked for, or a descendant of one, and no label of what the target data set can show:
`audioset_classes.csv` says which labels those are for each class, and their descendants count as well. A label
more general than a class's own ("Animal" for dog) does not exclude a segment.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from qdformer.utils.errors import InputError

CLASSES_CSV = Path(__file__).with_name("audioset_classes.csv")
MID = re.compile(r"/[mtg]/\w+", re.ASCII)
SOUNDS = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
CONTAINERS = {".mp4", ".m4a", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".aac", ".3gp", ".ts"}

_NUMBER = r"(\d+(?:\.\d+)?)"
_LINE = re.compile(rf'([\w-]{{11}}), *{_NUMBER}, *{_NUMBER}, *"({MID.pattern}(?:,{MID.pattern})*)"\s*', re.ASCII)
# {id}, {id}_{start}, {id}_{start}_{end}, in seconds or milliseconds, with or without a Y before
_CLIP_NAMES = [
    re.compile(prefix + r"(?P<id>[\w-]{11})(?:_(?P<start>\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?") for prefix in ("", "Y")
]


class AudioSetError(InputError):
    """A file of AudioSet, or what was asked of it, is not usable; the message names file and line."""


class Segment(NamedTuple):
    """A part of a YouTube video, `start` to `end` in seconds, and the ids of its labels."""

    youtube_id: str
    start: float
    end: float
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name as a file: the id and the start in milliseconds."""
        return f"{self.youtube_id}_{round(1000 * self.start)}"


class Clip(NamedTuple):
    """A file of a folder of clips; `start` as its name says it (seconds or milliseconds), if it does."""

    path: Path
    start: float | None


class Ontology:
    """The classes of `ontology.json`: names by id, and what lies below each."""

    def __init__(self, path: str | Path) -> None:
        """Read the file; raise `AudioSetError` if it is missing or not such a file."""
        self.path = Path(path)
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
            self.names: dict[str, str] = {entry["id"]: entry["name"] for entry in entries}
            self._children: dict[str, list[str]] = {entry["id"]: entry["child_ids"] for entry in entries}
        except FileNotFoundError:
            raise AudioSetError(f"{self.path}: no such file; expected AudioSet's ontology.json") from None
        except (ValueError, TypeError, KeyError) as error:
            raise AudioSetError(
                f"{self.path}: not AudioSet's ontology.json: expected a list of entries with id, name and child_ids"
                f" ({type(error).__name__}: {error})"
            ) from None

    def resolve_ids(self, names: Iterable[str]) -> list[str]:
        """The ids of classes given by name or id; raise `AudioSetError` for one that is unknown or ambiguous."""
        by_name = defaultdict(list)
        for mid, name in self.names.items():
            by_name[name.lower()].append(mid)
        found = []
        for name in names:
            mids = [name] if name in self.names else by_name.get(name.lower(), [])
            if not mids:
                near = difflib.get_close_matches(name, self.names.values(), 3)
                hint = f"; near it: {', '.join(map(repr, near))}" if near else ""
                raise AudioSetError(f"{self.path}: no class {name!r}{hint}")
            if len(mids) > 1:
                raise AudioSetError(f"{self.path}: {len(mids)} classes are called {name!r}: say {' or '.join(mids)}")
            found += mids
        return found

    def with_descendants(self, mids: Iterable[str]) -> frozenset[str]:
        """The ids, and those of everything below them; raise `AudioSetError` for an unknown id."""
        found: set[str] = set()
        waiting = list(mids)
        while waiting:
            mid = waiting.pop()
            if mid not in self._children:
                raise AudioSetError(f"{self.path}: no class with the id {mid!r}")
            if mid not in found:
                found.add(mid)
                waiting += self._children[mid]
        return frozenset(found)


def read_segments(path: str | Path) -> Iterator[Segment]:
    """Yield the segments of an official list: `YTID, start_seconds, end_seconds, positive_labels`.

    Lines that start with '#' are comments; the labels stand in quotes, with commas between.

    Raises:
        AudioSetError: the file is missing, or a line is not of this form; the message names the line.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, line in enumerate(file, start=1):
                if not line.startswith("#") and line.strip():
                    yield _parse(line, path, number)
    except FileNotFoundError:
        raise AudioSetError(f"{path}: no such file; expected an AudioSet segment list") from None
    except UnicodeDecodeError as error:
        raise AudioSetError(f"{path}: not a text file ({error})") from None


def _parse(line: str, path: Path, number: int) -> Segment:
    match = _LINE.fullmatch(line)
    if match and (start := float(match[2])) < (end := float(match[3])):
        return Segment(match[1], start, end, tuple(match[4].split(",")))
    raise AudioSetError(
        f'{path}, line {number}: {line.strip()!r}; expected YTID, start, end, "labels", as in'
        ' --4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/0bt9lr"'
    )


def read_class_mapping(path: Path = CLASSES_CSV) -> dict[str, tuple[str, ...]]:
    """For each class of a target data set the ids of the AudioSet classes it sounds as; none: declared unmappable."""
    table: dict[str, tuple[str, ...]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            mids = (row["mid"],) if row["mid"] else ()
            table[row["class"]] = table.get(row["class"], ()) + mids
    return table


def labels_of_classes(classes: Iterable[str], ontology: Ontology) -> frozenset[str]:
    """The ids of all labels that objects of these classes can sound as.

    Raises:
        AudioSetError: a class is not in `audioset_classes.csv`, or the ontology lacks an id of it.
    """
    table = read_class_mapping()
    mids: set[str] = set()
    for name in classes:
        if name not in table:
            raise AudioSetError(
                f"{CLASSES_CSV.name}: no row for the class {name!r} of the data set; expected its AudioSet classes,"
                " or a row without mid if there is none"
            )
        mids.update(table[name])
    return ontology.with_descendants(mids)


def select_segments(
    lists: Iterable[str | Path], wanted: frozenset[str], excluded: frozenset[str], seed: int
) -> list[Segment]:
    """The segments with a wanted label and no excluded one, in an order that `seed` and their names give.

    A segment that stands in several lists is taken once.
    """
    chosen = {}
    for path in lists:
        for segment in read_segments(path):
            labels = frozenset(segment.labels)
            if labels & wanted and not labels & excluded:
                chosen.setdefault(segment.name, segment)
    return sorted(chosen.values(), key=lambda segment: (_digest(seed, segment.name), segment.name))


def assign_split(youtube_id: str, counts: Mapping[str, int], seed: int) -> str:
    """The split that a video belongs to: drawn from `seed` and its id alone, in proportion to `counts`."""
    place = int.from_bytes(_digest(seed, youtube_id)[:8]) % sum(counts.values())
    for split, count in sorted(counts.items()):
        place -= count
        if place < 0:
            return split
    raise AssertionError("counts are positive")


def index_clip_files(folder: str | Path) -> dict[str, list[Clip]]:
    """The sounds and videos below `folder` by the YouTube id that their names hold.

    Names: `{id}`, `{id}_{start}` or `{id}_{start}_{end}`, in seconds or milliseconds, with or without a Y
    before the id. Other files are passed over. Raises `AudioSetError` if there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioSetError(f"{folder}: no such folder; expected clips of AudioSet named by their YouTube ids")
    index: dict[str, list[Clip]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SOUNDS | CONTAINERS:
            for match in filter(None, (form.fullmatch(path.stem) for form in _CLIP_NAMES)):
                start = float(match["start"]) if match["start"] else None
                index[match["id"]].append(Clip(path, start))
    return dict(index)


def find_clip_file(index: Mapping[str, list[Clip]], segment: Segment) -> Path | None:
    """The file of a segment: one whose name tells its start, else one without a start."""
    clips = index.get(segment.youtube_id, [])
    starts = (segment.start, 1000 * segment.start)
    told = [clip.path for clip in clips if clip.start in starts]
    untold = [clip.path for clip in clips if clip.start is None]
    return next(iter(told + untold), None)


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
