"""What is wrong with a data set's files: every picture, label map and sound is decoded.

The rules that are not plain damage:
- the pictures of a clip are of one size, and a label map is as large as its picture;
- a label map holds class ids 0..C or 255 only;
- a sound lasts as many seconds as the clip has frames (within half a second) and has only finite samples;
- a clip in which something sounds, by its row or by its label maps, is not all zeros. A clip in which nothing sounds
  may be;
- a connected component of a class (corners touch) is no speck: it has at least a stated share of the picture's area.

Shapes: H W pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from qdformer.audio.read import AudioError, decode_audio
from qdformer.data.checks.findings import Finding, Report, found, make_report
from qdformer.data.checks.tables import check_list, clips_per_split, read_list, share_videos, span_splits
from qdformer.data.layout import IGNORE, METADATA_FILE
from qdformer.data.manifest import Classes, read_classes, read_manifest, read_sounds

LENGTH_TOLERANCE = 0.5
"""Seconds by which a sound may be longer or shorter than its pictures."""
SPECK = 0.0003
"""Share of a picture's area below which a component is a speck: one pixel of masks at stride 4 of a picture of 224 x
224 pixels (16 of 50,176), so nothing that a model with such masks could draw."""
PICTURE_MODES = ("RGB", "L", "P", "RGBA")
LABEL_MODES = ("P", "L")
_CORNERS = np.ones((3, 3), bool)  # pixels that touch at a corner are connected


class Speck(NamedTuple):
    """A small component: its class id, its pixels, its box (left, top, right, bottom), and whether its class has
    nothing but specks in this label map."""

    class_id: int
    pixels: int
    box: tuple[int, int, int, int]
    alone: bool


@dataclass
class _Media:
    """What the files of one clip are: what is wrong with them, and digests of those that can be read."""

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    pictures: str = ""
    sound: str = ""


def check_dataset(root: str | Path, speck: float = SPECK, tolerate: Collection[str] = ()) -> Report:
    """Judge the lists of a data set and, where they can be used, every file of every clip.

    A component of a smaller share of the picture than `speck` is reported. Errors of the kinds in `tolerate` become
    warnings. Raises `DataError` where the lists are of no use at all.
    """
    root = Path(root)
    classes = read_classes(root)
    clips = read_list(root / METADATA_FILE)
    findings = list(check_list(clips))
    files = 0
    if not any(finding.severity == "error" for finding in findings):
        manifest = list(read_manifest(root).itertuples(index=False))
        media = _in_threads(lambda clip: _check_clip(clip, root, classes, speck), manifest)
        files = sum(one.files for one in media)
        findings += [finding for one in media for finding in one.findings]
        for what in ("pictures", "sound"):
            digests = [getattr(one, what) for one in media]
            findings += _duplicates(manifest, digests, what, root)
    return make_report(
        str(root),
        clips_per_split(clips.rows["split"]),
        files,
        findings,
        tolerate,
        sharing=share_videos(clips.rows),
        spanning=span_splits(clips.rows),
    )


def check_sounds(root: str | Path) -> Report:
    """Judge every sound of `sounds.csv`; raises `DataError` where that is of no use."""
    root = Path(root)
    sounds = read_sounds(root)
    media = _in_threads(lambda path: _check_lone_sound(path, root), list(sounds["path"].unique()))
    findings = [finding for one in media for finding in one.findings]
    return make_report(str(root), clips_per_split(sounds["split"]), len(media), findings)


def find_specks(labels_HW: np.ndarray, share: float) -> list[Speck]:
    """The connected components of less than `share` of all pixels, class by class; background and 255 have none."""
    least = share * labels_HW.size
    specks = []
    for class_id, area in enumerate(ndimage.find_objects(labels_HW, IGNORE - 1), start=1):
        if area is None:
            continue
        top, left = area[0].start, area[1].start
        parts_HW, count = ndimage.label(labels_HW[area] == class_id, _CORNERS)
        pixels = np.bincount(parts_HW.ravel())[1:]
        small = np.flatnonzero(pixels < least)
        boxes = ndimage.find_objects(parts_HW) if small.size else []
        for part in small:
            rows, columns = boxes[part]
            box = (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
            specks.append(Speck(class_id, int(pixels[part]), box, alone=small.size == count))
    return specks


def _in_threads(check: Callable[..., _Media], items: Sequence) -> list[_Media]:
    """What `check` says of each item, in their order. Decoding releases the interpreter lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(check, items), desc="check", total=len(items), unit="file", disable=None))


def _check_clip(clip, root: Path, classes: Classes, speck: float) -> _Media:
    """Judge the files of one row of the manifest."""
    media, notes = _Media(), _Notes(clip, root, classes, speck)
    digest, whole, first = hashlib.sha256(), True, None
    for image_path, label_path in zip(clip.images, clip.labels, strict=True):
        size = None
        if (content := notes.read(image_path, media)) is not None:
            digest.update(content)
            if (image := notes.decode(content, image_path, media, PICTURE_MODES)) is not None:
                size = image.size
                first = first or size
                if size != first:
                    message = f"{_by(size)} pixels; expected {_by(first)} like the clip's first picture"
                    media.findings.append(notes.found("wrong-size", message, image_path))
        whole = whole and size is not None
        if label_path is not None:
            notes.judge_labels(label_path, image_path, size, media)
    media.pictures = digest.hexdigest() if whole else ""
    media.findings += notes.summary()
    _judge_sound(clip.audio, root, media, clip.uid, clip.frames, notes.sounds or not clip.silent)
    return media


class _Notes:
    """What is gathered over the label maps of one clip."""

    def __init__(self, clip, root: Path, classes: Classes, speck: float) -> None:
        self.clip, self.root, self.classes, self.speck = clip, root, classes, speck
        self.sounds = False
        self.empty: list[tuple[Path, Path]] = []
        self.specks: list[tuple[Speck, int, Path, Path]] = []

    def found(self, kind: str, message: str, path: Path, **values: object) -> Finding:
        return found(kind, message, clip=self.clip.uid, file=path.relative_to(self.root), **values)

    def read(self, path: Path, media: _Media) -> bytes | None:
        media.files += 1
        try:
            return path.read_bytes()
        except FileNotFoundError:
            media.findings.append(self.found("missing-file", "missing; expected one for every second", path))
        except OSError as error:
            media.findings.append(self.found("unreadable-file", f"cannot be read ({error.strerror})", path))
        return None

    def decode(self, content: bytes, path: Path, media: _Media, modes: Sequence[str]) -> Image.Image | None:
        try:
            image = Image.open(io.BytesIO(content))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            media.findings.append(
                self.found("unreadable-file", "not a readable picture (empty, damaged or far too large)", path)
            )
            return None
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            media.findings.append(self.found("unreadable-file", f"damaged picture ({error})", path))
            return None
        if image.mode not in modes:
            message = f"mode {image.mode}; expected {' or '.join(modes)}"
            media.findings.append(self.found("wrong-mode", message, path, mode=image.mode))
            return None
        return image

    def judge_labels(self, path: Path, picture: Path, size: tuple[int, int] | None, media: _Media) -> None:
        content = self.read(path, media)
        image = None if content is None else self.decode(content, path, media, LABEL_MODES)
        if image is None:
            return
        if size is not None and image.size != size:
            message = f"{_by(image.size)} pixels; expected {_by(size)} like its picture"
            others = [str(picture.relative_to(self.root))]
            media.findings.append(self.found("wrong-size", message, path, others=others))
        labels_HW = np.asarray(image)
        present = np.flatnonzero(np.bincount(labels_HW.ravel(), minlength=IGNORE + 1))
        named = present[(present > 0) & (present != IGNORE)]
        if named.size and named[-1] > len(self.classes):
            message = f"unknown class id {named[-1]}; expected 0..{len(self.classes)}, or {IGNORE} for not labelled"
            media.findings.append(self.found("class-id", message, path, class_id=int(named[-1])))
            return
        if named.size:
            self.sounds = True
            self.specks += [(one, labels_HW.size, path, picture) for one in find_specks(labels_HW, self.speck)]
        else:
            self.empty.append((path, picture))

    def summary(self) -> Iterator[Finding]:
        labelled = self.clip.labelled
        if self.empty:
            path, picture = self.empty[0]
            despite = f", yet its row names {', '.join(self.clip.classes)}" if self.clip.classes else ""
            all_empty = len(self.empty) == labelled
            message = (
                f"nothing is labelled in all {labelled} label maps{despite}"
                if all_empty
                else f"nothing is labelled in {len(self.empty)} of {labelled} label maps"
            )
            context = {"picture": str(picture.relative_to(self.root))}
            yield self.found("empty-mask", message, path, empty=len(self.empty), labelled=labelled, **context)
        for kind, alone in (("lone-speck", True), ("tiny-component", False)):
            if specks := [one for one in self.specks if one[0].alone is alone]:
                yield self._specks(kind, specks)

    def _specks(self, kind: str, specks: list[tuple[Speck, int, Path, Path]]) -> Finding:
        smallest, area, path, picture = min(specks, key=lambda one: (one[0].pixels / one[1], one[2], one[0]))
        maps, name = len({one[2] for one in specks}), self.classes.names[smallest.class_id - 1]
        count = "1 speck" if len(specks) == 1 else f"{len(specks)} specks"
        return self.found(
            kind,
            f"{count} in {maps} of {self.clip.labelled} label maps; the smallest is {name}, "
            f"{smallest.pixels} of {area:,} pixels",
            path,
            specks=len(specks),
            maps=maps,
            name=name,
            pixels=smallest.pixels,
            share=round(smallest.pixels / area, 6),
            box=list(smallest.box),
            picture=str(picture.relative_to(self.root)),
        )


def _check_lone_sound(path: Path, root: Path) -> _Media:
    media = _Media()
    _judge_sound(path, root, media, "", None, sounds=True)
    return media


def _judge_sound(path: Path, root: Path, media: _Media, uid: str, seconds: int | None, sounds: bool) -> None:
    """Judge one sound: that of a clip of `seconds`, or a lone one. Silence, alike in many clips, gets no digest."""

    def note(kind: str, message: str, **values: object) -> None:
        media.findings.append(found(kind, message, clip=uid, file=path.relative_to(root), **values))

    media.files += 1
    if not path.exists():
        return note("missing-file", "missing; expected a sound")
    try:
        samples, rate = decode_audio(path)
    except AudioError as error:
        return note("unreadable-file", str(error).removeprefix(f"{path}: "))
    length = len(samples) / rate
    if seconds is not None and abs(length - seconds) > LENGTH_TOLERANCE:
        message = f"{length:.2f} s long; expected {seconds} s, one for every picture"
        note("audio-length", message, seconds=round(length, 3), expected=seconds)
    finite = np.isfinite(samples)
    if not finite.all():
        return note("bad-samples", f"{int((~finite).sum()):,} samples are not numbers; expected finite samples")
    if samples.any():
        media.sound = hashlib.sha256(path.read_bytes()).hexdigest()
    elif sounds:
        note("silent-audio", "all silence, yet its labels say that something sounds" if uid else "all silence")
    return None


def _duplicates(clips: Iterable, digests: Iterable[str], what: str, root: Path) -> Iterator[Finding]:
    """A finding for every group of clips with the same digest."""
    groups = defaultdict(list)
    for clip, digest in zip(clips, digests, strict=True):
        if digest:
            groups[digest].append(clip)
    for group in groups.values():
        if len(group) > 1:
            first = group[0]
            uids = [clip.uid for clip in group]
            splits = list(clips_per_split(clip.split for clip in group))
            message = f"the same {what} as {', '.join(uids[1:])} ({', '.join(splits)})"
            paths = [(clip.audio if what == "sound" else clip.images[0]).relative_to(root) for clip in group]
            others = [str(path) for path in paths[1:]]
            yield found("duplicate-media", message, clip=first.uid, file=paths[0], splits=splits, others=others)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
