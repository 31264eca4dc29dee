"""AudioSet: its segment lists, its ontology, and the selection of segments as background noise.

The lists and the ontology are the published files (Gemmeke et al., "Audio Set: An ontology and human-labeled
dataset for audio events", ICASSP 2017). A segment is selected if it has one of the requested labels, or a
descendant of one, and no label of a class of the target data set. `audioset_classes.csv` lists the labels of each
class; their descendants are excluded as well. A label that is more general than those of a class ("Animal" for dog)
does not exclude a segment.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

from qdformer.audio.io.read import AUDIO_SUFFIXES, CONTAINER_SUFFIXES
from qdformer.utils.digests import rendezvous_hash
from qdformer.utils.errors import InputError

_Split = TypeVar("_Split", bound=str)

CLASSES_CSV = Path(__file__).with_name("audioset_classes.csv")
MID = re.compile(r"/[mtg]/\w+", re.ASCII)

_NUMBER = r"(\d+(?:\.\d+)?)"
_LINE = re.compile(rf'([\w-]{{11}}), *{_NUMBER}, *{_NUMBER}, *"({MID.pattern}(?:,{MID.pattern})*)"\s*', re.ASCII)
# {id}, {id}_{start}, {id}_{start}_{end}, in seconds or milliseconds, with or without a leading Y
_CLIP_NAMES = [
    re.compile(prefix + r"(?P<id>[\w-]{11})(?:_(?P<start>\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?") for prefix in ("", "Y")
]


class AudioSetError(InputError):
    """A file of AudioSet, or a request for its classes, is not valid; the message names the file and line."""


class Segment(NamedTuple):
    """A part of a YouTube video, from `start` to `end` in seconds, with the ids of its labels."""

    youtube_id: str
    start: float
    end: float
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of its file without suffix: the id and the start in milliseconds."""
        return f"{self.youtube_id}_{round(1000 * self.start)}"


class Clip(NamedTuple):
    """An audio or video file; `start` as given in its name (in seconds or milliseconds), otherwise None."""

    path: Path
    start: float | None


class Ontology:
    """The classes of `ontology.json`: their names by id, and their descendants."""

    def __init__(self, path: str | Path) -> None:
        """Read the file; raise `AudioSetError` if it is missing or is not AudioSet's ontology."""
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
        """The ids of classes given by name or id; raise `AudioSetError` for an unknown or ambiguous name."""
        by_name = defaultdict(list)
        for mid, name in self.names.items():
            by_name[name.lower()].append(mid)
        found = []
        for name in names:
            mids = [name] if name in self.names else by_name.get(name.lower(), [])
            if not mids:
                near = difflib.get_close_matches(name, self.names.values(), 3)
                hint = f"; similar: {', '.join(map(repr, near))}" if near else ""
                raise AudioSetError(f"{self.path}: no class {name!r}{hint}")
            if len(mids) > 1:
                raise AudioSetError(
                    f"{self.path}: {len(mids)} classes are called {name!r}; give the id, {' or '.join(mids)}"
                )
            found += mids
        return found

    def with_descendants(self, mids: Iterable[str]) -> frozenset[str]:
        """The ids and those of all their descendants; raise `AudioSetError` for an unknown id."""
        found: set[str] = set()
        pending = list(mids)
        while pending:
            mid = pending.pop()
            if mid not in self._children:
                raise AudioSetError(f"{self.path}: no class with the id {mid!r}")
            if mid not in found:
                found.add(mid)
                pending += self._children[mid]
        return frozenset(found)


def read_segments(path: str | Path) -> Iterator[Segment]:
    """Yield the segments of an official list: `YTID, start_seconds, end_seconds, positive_labels`.

    Lines that start with '#' are comments. The labels are quoted and separated by commas.

    Raises:
        AudioSetError: the file is missing, or a line does not have this form; the message names the line.
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
    """The ids of the AudioSet classes of each class of the target data sets; empty for a class without any."""
    table: dict[str, tuple[str, ...]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            mids = (row["mid"],) if row["mid"] else ()
            table[row["class"]] = table.get(row["class"], ()) + mids
    return table


def labels_of_classes(classes: Iterable[str], ontology: Ontology) -> frozenset[str]:
    """The ids of all AudioSet labels of these classes, descendants included.

    Raises:
        AudioSetError: a class is not in `audioset_classes.csv`, or the ontology lacks one of its ids.
    """
    table = read_class_mapping()
    mids: set[str] = set()
    for name in classes:
        if name not in table:
            raise AudioSetError(
                f"{CLASSES_CSV.name}: no row for the class {name!r} of the data set; expected its AudioSet classes,"
                " or a row without mid if it has none"
            )
        mids.update(table[name])
    return ontology.with_descendants(mids)


def select_segments(
    lists: Iterable[str | Path], wanted: frozenset[str], excluded: frozenset[str], seed: int
) -> list[Segment]:
    """The segments with a wanted label and no excluded one, in an order that depends on `seed` and their names.

    A segment of several lists is returned once.
    """
    selected: dict[str, Segment] = {}
    for path in lists:
        for segment in read_segments(path):
            labels = frozenset(segment.labels)
            if labels & wanted and not labels & excluded:
                selected.setdefault(segment.name, segment)
    return sorted(selected.values(), key=lambda segment: (rendezvous_hash(seed, segment.name), segment.name))


def assign_split(youtube_id: str, counts: Mapping[_Split, int], seed: int) -> _Split:
    """The split of a video: it depends on `seed` and the id only, with probabilities in proportion to `counts`."""
    position = int.from_bytes(rendezvous_hash(seed, youtube_id)[:8]) % sum(counts.values())
    for split, count in sorted(counts.items()):
        position -= count
        if position < 0:
            return split
    raise AssertionError("counts are positive")


def index_clip_files(folder: str | Path) -> dict[str, list[Clip]]:
    """The audio and video files below `folder`, by the YouTube id in their names.

    Names: `{id}`, `{id}_{start}` or `{id}_{start}_{end}`, in seconds or milliseconds, with or without a leading Y.
    Other files are ignored. Raises `AudioSetError` if the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AudioSetError(f"{folder}: no such folder; expected clips of AudioSet named by their YouTube ids")
    index: dict[str, list[Clip]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in AUDIO_SUFFIXES | CONTAINER_SUFFIXES:
            for match in filter(None, (form.fullmatch(path.stem) for form in _CLIP_NAMES)):
                start = float(match["start"]) if match["start"] else None
                index[match["id"]].append(Clip(path, start))
    return dict(index)


def find_clip_file(index: Mapping[str, list[Clip]], segment: Segment) -> Path | None:
    """The file of a segment: preferably one with the segment's start in its name, otherwise one without a start."""
    clips = index.get(segment.youtube_id, [])
    starts = (segment.start, 1000 * segment.start)
    with_start = [clip.path for clip in clips if clip.start in starts]
    without_start = [clip.path for clip in clips if clip.start is None]
    return next(iter(with_start + without_start), None)
