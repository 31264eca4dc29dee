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

from qdformer.audio.io.read import LOG_MEL_SUFFIX, AudioError, decode_audio
from qdformer.audio.io.sound_table import read_sound_table
from qdformer.data.checks.findings import Finding, Report, make_finding, make_report
from qdformer.data.checks.lists import check_list, clips_per_split, read_list, split_overlaps, video_spans
from qdformer.data.labels import to_class_ids
from qdformer.data.manifest import Classes, read_classes, read_manifest, table_path
from qdformer.data.readers.avsbench import read_dataset_record
from qdformer.utils.constants import IGNORE_INDEX

LENGTH_TOLERANCE = 0.5
"""Seconds by which a sound may be longer or shorter than its pictures."""
MIN_COMPONENT_AREA = 0.0003
"""Share of a picture's area below which a component is a speck: one pixel of masks at stride 4 of a picture of 224 x
224 pixels (16 of 50,176), so nothing that a model with such masks could draw."""
PATCH_SECONDS = 0.96
PICTURE_MODES = ("RGB", "L", "P", "RGBA")
LABEL_MODES = ("P", "L")
MASK_MODES = ("1", "P", "L")
_CORNERS = np.ones((3, 3), bool)  # pixels that touch at a corner are connected


class SmallComponent(NamedTuple):
    """A small component: its class id, its pixels, its box (left, top, right, bottom), and whether its class has
    nothing but specks in this label map."""

    class_id: int
    pixels: int
    box: tuple[int, int, int, int]
    alone: bool


@dataclass
class _Media:
    """What the files of one clip, or one lone sound, are: what is wrong, and digests of what could be read."""

    root: Path
    clip: str = ""
    files: int = 0
    findings: list[Finding] = field(default_factory=list)
    pictures: str = ""
    sound: str = ""

    def note(self, kind: str, message: str, path: Path, **values: object) -> None:
        """Add a finding about the file `path`."""
        self.findings.append(make_finding(kind, message, clip=self.clip, file=path.relative_to(self.root), **values))

    def read(self, path: Path) -> bytes | None:
        """What the file holds; None and a finding if it cannot be read."""
        self.files += 1
        try:
            return path.read_bytes()
        except FileNotFoundError:
            self.note("missing-file", "missing; expected one for every second", path)
        except OSError as error:
            self.note("unreadable-file", f"cannot be read ({error.strerror})", path)
        return None

    def decode(self, content: bytes, path: Path, modes: Sequence[str]) -> Image.Image | None:
        """The picture, decoded; None and a finding if it is damaged or of another mode."""
        try:
            image = Image.open(io.BytesIO(content))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            self.note("unreadable-file", "not a readable picture (empty, damaged or far too large)", path)
            return None
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            self.note("unreadable-file", f"damaged picture ({error})", path)
            return None
        if image.mode not in modes:
            self.note("wrong-mode", f"mode {image.mode}; expected {' or '.join(modes)}", path, mode=image.mode)
            return None
        return image


class _Labels(NamedTuple):
    """A label map that could be read: class ids, where they lie, and the picture that they are of."""

    ids_HW: np.ndarray
    path: Path
    picture: Path

    @property
    def empty(self) -> bool:
        return not ((self.ids_HW > 0) & (self.ids_HW != IGNORE_INDEX)).any()


def check_dataset(
    root: str | Path, min_component_area: float = MIN_COMPONENT_AREA, tolerate: Collection[str] = ()
) -> Report:
    """Judge the lists of a data set and, where they can be used, every file of every clip.

    A component of a smaller share of the picture than `speck` is reported. Errors of the kinds in `tolerate` become
    warnings. Raises `DataError` where the lists are of no use at all.
    """
    root = Path(root)
    classes = read_classes(root)
    clips, about, files = read_list(table_path(root)), read_dataset_record(root), 0
    if about and about.split != "published":
        clips = clips.only(read_manifest(root)["uid"])
    findings = list(check_list(clips))
    if not any(finding.severity == "error" for finding in findings):
        manifest = list(read_manifest(root).itertuples(index=False))
        media = _in_threads(lambda clip: _check_clip(clip, root, classes, min_component_area), manifest, "clip")
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
        sharing=split_overlaps(clips.rows),
        spanning=video_spans(clips.rows),
    )


def check_sounds(root: str | Path) -> Report:
    """Judge every sound of `sounds.csv`; raises `DataError` where that is of no use."""
    root = Path(root)
    sounds = read_sound_table(root)
    media = _in_threads(lambda path: _check_lone_sound(path, root), list(sounds["path"].unique()), "sound")
    findings = [finding for one in media for finding in one.findings]
    return make_report(str(root), clips_per_split(sounds["split"]), len(media), findings)


def find_small_components(labels_HW: np.ndarray, share: float) -> list[SmallComponent]:
    """The connected components of less than `share` of all pixels, class by class; background and 255 have none."""
    least = share * labels_HW.size
    specks = []
    for class_id, area in enumerate(ndimage.find_objects(labels_HW, IGNORE_INDEX - 1), start=1):
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
            specks.append(SmallComponent(class_id, int(pixels[part]), box, alone=small.size == count))
    return specks


def _in_threads(check: Callable[..., _Media], items: Sequence, unit: str) -> list[_Media]:
    """What `check` says of each item, in their order. Decoding releases the interpreter lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            return list(tqdm(pool.map(check, items), desc="check", total=len(items), unit=unit, disable=None))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # Ctrl-C need not wait for the rest
            raise


def _check_clip(clip, root: Path, classes: Classes, min_component_area: float) -> _Media:
    """Judge the files of one row of the manifest."""
    media, digest, sizes, maps = _Media(root, clip.uid), hashlib.sha256(), [], []
    for picture, label in zip(clip.images, clip.labels, strict=True):
        content = media.read(picture)
        image = None if content is None else media.decode(content, picture, PICTURE_MODES)
        if image is not None:
            digest.update(content)
            sizes.append(image.size)
            if image.size != sizes[0]:
                message = f"{_by(image.size)} pixels; expected {_by(sizes[0])} like the clip's first picture"
                media.note("wrong-size", message, picture)
        if label is not None:
            size = None if image is None else image.size
            if (labels := _read_labels(media, label, picture, size, clip.binary, len(classes))) is not None:
                maps.append(labels)
    if len(sizes) == clip.frames:
        media.pictures = digest.hexdigest()
    _judge_labels(media, clip, maps, classes, min_component_area)
    _judge_sound(media, clip.audio, clip.frames, sounds=not clip.silent or not all(labels.empty for labels in maps))
    return media


def _check_lone_sound(path: Path, root: Path) -> _Media:
    media = _Media(root)
    _judge_sound(media, path, None, sounds=True)
    return media


def _read_labels(
    media: _Media, path: Path, picture: Path, size: tuple[int, int] | None, binary: bool, num_classes: int
) -> _Labels | None:
    """The label map of a picture of `size` (None: unknown), if it is one."""
    content = media.read(path)
    image = None if content is None else media.decode(content, path, MASK_MODES if binary else LABEL_MODES)
    if image is None:
        return None
    if size is not None and image.size != size:
        message = f"{_by(image.size)} pixels; expected {_by(size)} like its picture"
        media.note("wrong-size", message, path, others=[str(picture.relative_to(media.root))])
    ids_HW = np.asarray(to_class_ids(image, binary, "avss"))
    if (unknown := (ids_HW > num_classes) & (ids_HW != IGNORE_INDEX)).any():
        first = int(ids_HW[unknown][0])
        message = f"unknown class id {first}; expected 0..{num_classes}, or {IGNORE_INDEX} for not labeled"
        media.note("class-id", message, path, class_id=first)
        return None
    return _Labels(ids_HW, path, picture)


def _judge_labels(media: _Media, clip, maps: Sequence[_Labels], classes: Classes, min_component_area: float) -> None:
    """Note what is empty in the label maps of a clip, and the specks in them, once for each clip."""
    if empty := [labels for labels in maps if labels.empty]:
        count, yet = f"{len(empty)} of {clip.labeled} label maps", ""
        if len(empty) == clip.labeled:
            count, yet = f"all {clip.labeled} label maps", f", yet its row names {', '.join(clip.classes)}"
        message = f"nothing is labeled in {count}{yet if clip.classes else ''}"
        context = {"picture": str(empty[0].picture.relative_to(media.root)), "binary": clip.binary}
        media.note("empty-mask", message, empty[0].path, empty=len(empty), labeled=clip.labeled, **context)
    specks = [
        (one, labels)
        for labels in maps
        if not labels.empty
        for one in find_small_components(labels.ids_HW, min_component_area)
    ]
    for kind, alone in (("only-small-components", True), ("small-component", False)):
        if not (group := [one for one in specks if one[0].alone is alone]):
            continue
        smallest, labels = min(group, key=lambda one: (one[0].pixels / one[1].ids_HW.size, one[1].path, one[0]))
        in_maps, name, area = (
            len({one[1].path for one in group}),
            classes.names[smallest.class_id - 1],
            labels.ids_HW.size,
        )
        media.note(
            kind,
            f"{'1 speck' if len(group) == 1 else f'{len(group)} specks'} in {in_maps} of {clip.labeled} label maps; "
            f"the smallest is {name}, {smallest.pixels} of {area:,} pixels",
            labels.path,
            specks=len(group),
            maps=in_maps,
            name=name,
            pixels=smallest.pixels,
            share=round(smallest.pixels / area, 6),
            box=list(smallest.box),
            picture=str(labels.picture.relative_to(media.root)),
            binary=clip.binary,
        )


def _judge_sound(media: _Media, path: Path, seconds: int | None, sounds: bool) -> None:
    """Judge the sound of a clip of `seconds`, or a lone one. Silence, alike in many clips, gets no digest."""
    media.files += 1
    if not path.exists():
        return media.note("missing-file", "missing; expected a sound", path)
    if path.suffix == LOG_MEL_SUFFIX:
        return _judge_log_mel(media, path, seconds)
    try:
        samples, rate = decode_audio(path)
    except AudioError as error:
        return media.note("unreadable-file", str(error).removeprefix(f"{path}: "), path)
    length = len(samples) / rate
    if seconds is not None and abs(length - seconds) > LENGTH_TOLERANCE:
        message = f"{length:.2f} s long; expected {seconds} s, one for every picture"
        media.note("audio-length", message, path, seconds=round(length, 3), expected=seconds)
    if bad := int((~np.isfinite(samples)).sum()):
        return media.note("bad-samples", f"{bad:,} samples are not numbers; expected finite samples", path)
    if samples.any():
        media.sound = hashlib.sha256(path.read_bytes()).hexdigest()
    elif sounds:
        yet = ", yet its labels say that something sounds" if seconds is not None else ""
        media.note("silent-audio", f"all silence{yet}", path)
    return None


def _judge_log_mel(media: _Media, path: Path, seconds: int) -> None:
    """Judge the spectrogram that stands in a sound's place."""
    from qdformer.audio.vggish.log_mel_pickle import read_log_mel  # here, for it loads torch

    try:
        patches = len(read_log_mel(path))
    except AudioError as error:
        return media.note("unreadable-file", str(error).removeprefix(f"{path}: "), path)
    if patches != (expected := int(seconds / PATCH_SECONDS)):
        message = f"{patches} patches of {PATCH_SECONDS} s; expected {expected}"
        media.note("audio-length", message, path, patches=patches, expected=expected)
    media.sound = hashlib.sha256(path.read_bytes()).hexdigest()
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
            yield make_finding("duplicate-media", message, clip=first.uid, file=paths[0], splits=splits, others=others)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
