"""The kinds of problems that a data set can have, and the report of those found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from qdformer.data.layout import DataError

_MAX_LISTED = 10  # errors named in one message


@dataclass(frozen=True)
class Kind:
    """A kind of problem. An `error` stops the pipeline; a `warning` is only reported."""

    severity: Literal["error", "warning"]
    title: str
    meaning: str


KINDS: Mapping[str, Kind] = {
    "missing-file": Kind(
        "error",
        "Missing files",
        "A clip needs one picture per second, a label map for each labeled frame, and a sound.",
    ),
    "unreadable-file": Kind("error", "Unreadable files", "The file is empty, damaged, truncated or of another format."),
    "wrong-size": Kind(
        "error", "Wrong sizes", "All pictures of a clip must have one size, and a label map the size of its picture."
    ),
    "wrong-mode": Kind("error", "Wrong modes", "A label map has one value per pixel, a picture 8 bits per channel."),
    "class-id": Kind("error", "Class ids out of range", "A label map contains an id of no class."),
    "bad-samples": Kind("error", "Sounds with non-finite samples", "The sound contains NaN or infinite samples."),
    "audio-length": Kind(
        "error", "Sounds of the wrong length", "The lengths of sound and pictures differ by more than 0.5 s."
    ),
    "silent-audio": Kind("error", "Silent sounds", "All samples are 0, but the labels name a sounding object."),
    "bad-row": Kind("error", "Invalid rows", "The split is unknown, or a name cannot be used as a folder name."),
    "duplicate-uid": Kind("error", "Clips listed more than once", "Each clip must have a unique name."),
    "unknown-class": Kind("error", "Unknown categories", "The name is not a class, nor similar to one."),
    "class-typo": Kind("warning", "Misspelled categories", "The name is not a class, but similar to one."),
    "row-count": Kind("warning", "Unexpected numbers of clips", "The length of the list differs from its publication."),
    "shared-video": Kind(
        "warning",
        "Videos in several splits",
        "Clips of one video in both training and test make the test split easier than intended.",
    ),
    "absent-class": Kind(
        "warning", "Classes absent from a split", "The metrics of this split do not cover these classes."
    ),
    "background-row": Kind(
        "warning", "Rows that name the background", "According to the list, nothing sounds in the clip."
    ),
    "off-screen-row": Kind(
        "warning", "Rows with off-screen sounds", "The source of the sound is not visible and has no mask."
    ),
    "duplicate-media": Kind("warning", "Identical clips", "Several clips have the same sound or the same pictures."),
    "empty-mask": Kind(
        "warning", "Clips with empty label maps", "The published metrics score such frames differently."
    ),
    "only-small-components": Kind(
        "warning",
        "Classes with only small components",
        "A class has nothing but small components in a label map. In the per-frame mIoU these few pixels count as much "
        "as a whole object.",
    ),
    "small-component": Kind(
        "warning",
        "Small components",
        "A class has small components besides its objects. A model with masks at stride 4 cannot segment them.",
    ),
}
"""In the order of every report. A finding may deviate from the severity of its kind; errors come first in each kind."""


@dataclass(frozen=True)
class Finding:
    """One problem. `file` is relative to the folder of the data set; `clip` and `file` may be ''."""

    kind: str
    message: str
    clip: str = ""
    file: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    severity: Literal["error", "warning"] = "warning"

    def __str__(self) -> str:
        where = [f"clip {self.clip}"] if self.clip else []
        return ": ".join([*where, *filter(None, [self.file]), self.message])


def make_finding(kind: str, message: str, *, clip: str = "", file: object = "", **values: Any) -> Finding:
    """A finding with the severity of its kind."""
    return Finding(kind, message, clip, str(file), values, KINDS[kind].severity)


@dataclass(frozen=True)
class SplitOverlap:
    """Clips of a split whose videos also have clips in another split.

    `clips` of the `of` clips in `split` (and `subset`; '' for all) come from `videos` videos that also have clips in
    the split `other`.
    """

    subset: str
    split: str
    other: str
    clips: int
    of: int
    videos: int


@dataclass(frozen=True)
class VideoSpan:
    """Of the `of` videos in `subset` ('' for all), `videos` have clips in more than one split."""

    subset: str
    videos: int
    of: int


@dataclass(frozen=True)
class Report:
    """The result of checking `source`: clips per split, number of opened files, findings in the order of `KINDS`."""

    source: str
    clips: Mapping[str, int]
    files: int
    findings: tuple[Finding, ...]
    sharing: tuple[SplitOverlap, ...] = ()
    spanning: tuple[VideoSpan, ...] = ()

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    def by_kind(self) -> dict[str, list[Finding]]:
        """The findings by kind, without the kinds that have none."""
        groups = {kind: [finding for finding in self.findings if finding.kind == kind] for kind in KINDS}
        return {kind: group for kind, group in groups.items() if group}

    def to_dict(self) -> dict[str, Any]:
        """The report in plain types, for JSON."""
        counts = Counter(finding.kind for finding in self.findings)
        return {"kinds": {kind: counts[kind] for kind in KINDS}, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The report from which `to_dict` made `values`."""
        rows = {"findings": Finding, "sharing": SplitOverlap, "spanning": VideoSpan}
        lists = {name: tuple(row(**one) for one in values[name]) for name, row in rows.items()}
        return cls(values["source"], values["clips"], values["files"], **lists)


def make_report(
    source: str,
    clips: Mapping[str, int],
    files: int,
    findings: Iterable[Finding],
    tolerate: Collection[str] = (),
    **more: tuple,
) -> Report:
    """A report with its findings in the order of `KINDS`. Errors of the kinds in `tolerate` become warnings."""
    order = list(KINDS)
    tolerated = (replace(one, severity="warning") if one.kind in tolerate else one for one in findings)
    ordered = sorted(tolerated, key=lambda one: (order.index(one.kind), one.severity))
    return Report(source, clips, files, tuple(ordered), **more)


def raise_on_errors(report: Report, sources: Sequence[str] = ()) -> None:
    """Raise one `DataError` that names clip, file and problem of the first errors, if there are any.

    `sources` are the folders, archives or URLs from which the data set was imported: the message names them, because
    that is where its user corrects it.
    """
    problems = [str(error) for error in report.errors]
    if not problems:
        return
    lines = problems[:_MAX_LISTED]
    if len(problems) > _MAX_LISTED:
        lines.append(f"and {len(problems) - _MAX_LISTED} more")
    if sources:
        lines.append(f"correct the files in {', '.join(sources)} and run the pipeline again")
    raise DataError(f"{report.source}: " + "\n  ".join(lines))
