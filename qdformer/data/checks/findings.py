"""What can be wrong with a data set, and a report of what is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from qdformer.data.layout import DataError

_LISTED = 10  # problems named in one message


@dataclass(frozen=True)
class Kind:
    """One way of being wrong: an `error` stops the pipeline, a `warning` is reported only."""

    severity: Literal["error", "warning"]
    title: str
    meaning: str


KINDS: Mapping[str, Kind] = {
    "missing-file": Kind(
        "error", "Missing files", "A clip needs a picture for every second, a label map where it is labeled, a sound."
    ),
    "unreadable-file": Kind("error", "Unreadable files", "Empty, damaged, cut short, or of another kind."),
    "wrong-size": Kind(
        "error", "Wrong sizes", "All pictures of a clip are of one size, and a label map is as large as its picture."
    ),
    "wrong-mode": Kind("error", "Wrong modes", "A label map holds one number a pixel, a picture 8 bits a channel."),
    "class-id": Kind("error", "Class ids out of range", "A label map holds an id that no class has."),
    "bad-samples": Kind("error", "Sounds with samples that are not numbers", "NaN or infinite."),
    "audio-length": Kind("error", "Sounds longer or shorter than the pictures", "By more than half a second."),
    "silent-audio": Kind("error", "Silence where something sounds", "All samples are 0, yet labels name something."),
    "bad-row": Kind("error", "Rows that cannot be used", "An unknown split, or a name that cannot be a folder's."),
    "duplicate-uid": Kind("error", "Clips listed twice", "The name of a clip is its identity."),
    "unknown-class": Kind("error", "Unknown categories", "A name that is no class and like none."),
    "class-typo": Kind("warning", "Misspelt categories", "A name that is no class, but nearly one."),
    "row-count": Kind("warning", "Numbers of clips", "The list is not as long as its publication says."),
    "shared-video": Kind(
        "warning",
        "Videos in several splits",
        "Clips of one YouTube id in training and in test make the test easier than it claims to be.",
    ),
    "absent-class": Kind("warning", "Splits without some classes", "No score of that split says anything of them."),
    "background-row": Kind("warning", "Rows that name background", "By the list, nothing sounds."),
    "off-screen-row": Kind("warning", "Rows that name what is off the screen", "It is heard, and has no mask."),
    "duplicate-media": Kind("warning", "Clips with equal bytes", "Several clips have the same sound or pictures."),
    "empty-mask": Kind(
        "warning", "Clips with empty label maps", "Published scores differ in what they make of such a frame."
    ),
    "only-small-components": Kind(
        "warning",
        "Clips where a speck is all there is of a class",
        "In per-frame mIoU these few pixels weigh as much as a whole object does.",
    ),
    "small-component": Kind(
        "warning",
        "Clips with specks beside their objects",
        "Too small to be drawn by a model whose masks have stride 4.",
    ),
}
"""In the order of every report. A finding can be graver, or be tolerated: errors come first in each kind."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `file` is relative to the data set's folder; `clip` and `file` may be ''."""

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
    """A finding as severe as its kind."""
    return Finding(kind, message, clip, str(file), values, KINDS[kind].severity)


@dataclass(frozen=True)
class SplitOverlap:
    """`clips` of the `of` clips of `split` (and `subset`; '' for all) come from videos that `other` has clips of too.

    `videos` is the number of those videos.
    """

    subset: str
    split: str
    other: str
    clips: int
    of: int
    videos: int


@dataclass(frozen=True)
class VideoSpan:
    """`videos` of the `of` videos of `subset` ('' for all) have clips in more than one split of it."""

    subset: str
    videos: int
    of: int


@dataclass(frozen=True)
class Report:
    """What was found in `source`: its clips per split, the number of files opened, findings in the order of `KINDS`."""

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
        """The findings of each kind that has any."""
        groups = {kind: [finding for finding in self.findings if finding.kind == kind] for kind in KINDS}
        return {kind: group for kind, group in groups.items() if group}

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain types."""
        counts = Counter(finding.kind for finding in self.findings)
        return {"kinds": {kind: counts[kind] for kind in KINDS}, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The report that `to_dict` gave `values` of."""
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
    """A report in the order of `KINDS`; errors of the kinds in `tolerate` become warnings."""
    order = list(KINDS)
    eased = (replace(one, severity="warning") if one.kind in tolerate else one for one in findings)
    return Report(
        source, clips, files, tuple(sorted(eased, key=lambda one: (order.index(one.kind), one.severity))), **more
    )


def raise_on_errors(report: Report) -> None:
    """Raise one `DataError` that names clip, file and problem of the first errors, if there are any."""
    if problems := [str(error) for error in report.errors]:
        more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        raise DataError(f"{report.source}: " + "\n  ".join(problems[:_LISTED] + more))
