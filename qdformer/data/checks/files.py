"""Checks the files of a data set: every picture, label map and sound is decoded.

Besides damage, these rules are checked:
- all pictures of a clip have one size, and a label map has the size of its picture;
- a label map contains only class ids 0..C and 255;
- a sound lasts as many seconds as the clip has frames (within 0.5 s) and has only finite samples;
- the sound of a clip is not all zeros if an object sounds according to its row or its label maps;
- a connected component of a class (8-connectivity) covers at least a given fraction of the label map.

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
from qdformer.data.manifest import Classes, read_classes, read_clips, table_path
from qdformer.data.readers.avsbench import read_dataset_record
from qdformer.utils.constants import IGNORE_INDEX

LENGTH_TOLERANCE = 0.5
"""Largest difference in seconds between the lengths of a sound and its pictures."""
MIN_COMPONENT_AREA = 0.0003
"""Fraction of the area of a label map below which a component is reported: one pixel of a mask at stride 4 for a
picture of 224 x 224 pixels (16 of 50,176), less than a model with such masks can segment."""
PICTURE_MODES = ("RGB", "L", "P", "RGBA")
LABEL_MODES = ("P", "L")
MASK_MODES = ("1", "P", "L")
_EIGHT_CONNECTED = np.ones((3, 3), bool)


class SmallComponent(NamedTuple):
    """A small component: class id, number of pixels and box (left, top, right, bottom).

    `alone`: its class has only small components in this label map.
    """

    class_id: int
    pixels: int
    box: tuple[int, int, int, int]
    alone: bool


@dataclass
class _Checked:
    """Result of checking the files of one clip, or one single sound: findings and digests of the readable files."""

    root: Path
    clip: str = ""
    files: int = 0
    findings: list[Finding] = field(default_factory=list)
    pictures: str = ""
    sound: str = ""

    def add(self, kind: str, message: str, path: Path, **values: object) -> None:
        """Add a finding about the file `path`."""
        self.findings.append(make_finding(kind, message, clip=self.clip, file=path.relative_to(self.root), **values))

    def read(self, path: Path) -> bytes | None:
        """The content of the file; None and a finding if it cannot be read."""
        self.files += 1
        try:
            return path.read_bytes()
        except FileNotFoundError:
            self.add("missing-file", "missing; expected one for every second", path)
        except OSError as error:
            self.add("unreadable-file", f"cannot be read ({error.strerror})", path)
        return None

    def decode(self, content: bytes, path: Path, modes: Sequence[str]) -> Image.Image | None:
        """The decoded picture; None and a finding if it is damaged or of another mode."""
        try:
            image = Image.open(io.BytesIO(content))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            self.add("unreadable-file", "not a readable picture (empty, damaged or too large)", path)
            return None
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            self.add("unreadable-file", f"damaged picture ({error})", path)
            return None
        if image.mode not in modes:
            self.add("wrong-mode", f"mode {image.mode}; expected {' or '.join(modes)}", path, mode=image.mode)
            return None
        return image


class _Labels(NamedTuple):
    """A readable label map: its class ids, its path and the path of its picture."""

    ids_HW: np.ndarray
    path: Path
    picture: Path

    @property
    def empty(self) -> bool:
        return not ((self.ids_HW > 0) & (self.ids_HW != IGNORE_INDEX)).any()


def check_dataset(
    root: str | Path, min_component_area: float = MIN_COMPONENT_AREA, tolerate: Collection[str] = ()
) -> Report:
    """Check the lists of a data set and, if their rows can be used, every file of every clip.

    Components that cover a smaller fraction of a label map than `min_component_area` are reported. Errors of the kinds
    in `tolerate` become warnings. Raises `DataError` if the lists cannot be read at all.
    """
    root = Path(root)
    classes = read_classes(root)
    clips, record, files = read_list(table_path(root)), read_dataset_record(root), 0
    if record and record.split == "youtube_disjoint":
        clips = clips.youtube_disjoint()
    findings = list(check_list(clips))
    if not any(finding.severity == "error" and finding.kind != "duplicate-uid" for finding in findings):
        manifest = list(read_clips(root).drop_duplicates("uid").itertuples(index=False))
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
    """Check every sound of `sounds.csv`. Raises `AudioError` if the table cannot be used."""
    root = Path(root)
    sounds = read_sound_table(root)
    media = _in_threads(lambda path: _check_single_sound(path, root), list(sounds["path"].unique()), "sound")
    findings = [finding for one in media for finding in one.findings]
    return make_report(str(root), clips_per_split(sounds["split"]), len(media), findings)


def find_small_components(labels_HW: np.ndarray, min_area: float) -> list[SmallComponent]:
    """The connected components of each class that cover less than the fraction `min_area` of the label map."""
    min_pixels = min_area * labels_HW.size
    components = []
    for class_id, area in enumerate(ndimage.find_objects(labels_HW, IGNORE_INDEX - 1), start=1):
        if area is None:
            continue
        top, left = area[0].start, area[1].start
        parts_HW, count = ndimage.label(labels_HW[area] == class_id, _EIGHT_CONNECTED)
        pixels = np.bincount(parts_HW.ravel())[1:]
        small = np.flatnonzero(pixels < min_pixels)
        boxes = ndimage.find_objects(parts_HW) if small.size else []
        for part in small:
            rows, columns = boxes[part]
            box = (left + columns.start, top + rows.start, left + columns.stop, top + rows.stop)
            components.append(SmallComponent(class_id, int(pixels[part]), box, alone=small.size == count))
    return components


def _in_threads(check: Callable[..., _Checked], items: Sequence, unit: str) -> list[_Checked]:
    """Apply `check` to each item, in order. Threads suffice because decoding releases the interpreter lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            return list(tqdm(pool.map(check, items), desc="check", total=len(items), unit=unit, disable=None))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, do not wait for the remaining items
            raise


def _check_clip(clip, root: Path, classes: Classes, min_component_area: float) -> _Checked:
    """Check the files of one row of the manifest."""
    media, digest, sizes, maps = _Checked(root, clip.uid), hashlib.sha256(), [], []
    for picture, label in zip(clip.images, clip.labels, strict=True):
        content = media.read(picture)
        image = None if content is None else media.decode(content, picture, PICTURE_MODES)
        if content is not None and image is not None:
            digest.update(content)
            sizes.append(image.size)
            if image.size != sizes[0]:
                message = (
                    f"{_size_text(image.size)} pixels; expected {_size_text(sizes[0])} like the clip's first picture"
                )
                media.add("wrong-size", message, picture)
        if label is not None:
            size = None if image is None else image.size
            if (labels := _read_labels(media, label, picture, size, clip.binary, len(classes))) is not None:
                maps.append(labels)
    if len(sizes) == clip.frames:
        media.pictures = digest.hexdigest()
    _check_labels(media, clip, maps, classes, min_component_area)
    _check_sound(media, clip.audio, clip.frames, sounds=not clip.silent or not all(labels.empty for labels in maps))
    return media


def _check_single_sound(path: Path, root: Path) -> _Checked:
    media = _Checked(root)
    _check_sound(media, path, None, sounds=True)
    return media


def _read_labels(
    media: _Checked, path: Path, picture: Path, size: tuple[int, int] | None, binary: bool, num_classes: int
) -> _Labels | None:
    """Read the label map of a picture of `size` (None if unknown); None and findings if it is not valid."""
    content = media.read(path)
    image = None if content is None else media.decode(content, path, MASK_MODES if binary else LABEL_MODES)
    if image is None:
        return None
    if size is not None and image.size != size:
        message = f"{_size_text(image.size)} pixels; expected {_size_text(size)} like its picture"
        media.add("wrong-size", message, path, others=[str(picture.relative_to(media.root))])
    ids_HW = np.asarray(to_class_ids(image, binary, "avss"))
    if (unknown := (ids_HW > num_classes) & (ids_HW != IGNORE_INDEX)).any():
        first = int(ids_HW[unknown][0])
        message = f"unknown class id {first}; expected 0..{num_classes}, or {IGNORE_INDEX} for not labeled"
        media.add("class-id", message, path, class_id=first)
        return None
    return _Labels(ids_HW, path, picture)


def _check_labels(media: _Checked, clip, maps: Sequence[_Labels], classes: Classes, min_component_area: float) -> None:
    """Add at most one finding per clip for its empty label maps and for each kind of small components."""
    if empty := [labels for labels in maps if labels.empty]:
        message = f"nothing is labeled in {len(empty)} of {clip.labeled} label maps"
        if len(empty) == clip.labeled:
            message = f"nothing is labeled in any of {clip.labeled} label maps"
            if clip.classes:
                message += f", but its row names {', '.join(clip.classes)}"
        context = {"picture": str(empty[0].picture.relative_to(media.root)), "binary": clip.binary}
        media.add("empty-mask", message, empty[0].path, empty=len(empty), labeled=clip.labeled, **context)
    components = [
        (component, labels)
        for labels in maps
        if not labels.empty
        for component in find_small_components(labels.ids_HW, min_component_area)
    ]
    for kind, alone in (("only-small-components", True), ("small-component", False)):
        group = [(component, labels) for component, labels in components if component.alone is alone]
        if not group:
            continue
        smallest, labels = min(group, key=lambda one: (one[0].pixels / one[1].ids_HW.size, one[1].path, one[0]))
        num_maps, area = len({labels.path for _, labels in group}), labels.ids_HW.size
        name = classes.names[smallest.class_id - 1]
        count = f"{len(group)} small component{'' if len(group) == 1 else 's'}"
        media.add(
            kind,
            f"{count} in {num_maps} of {clip.labeled} label maps; the smallest is {name}, "
            f"{smallest.pixels} of {area:,} pixels",
            labels.path,
            components=len(group),
            maps=num_maps,
            name=name,
            pixels=smallest.pixels,
            share=round(smallest.pixels / area, 6),
            box=list(smallest.box),
            picture=str(labels.picture.relative_to(media.root)),
            binary=clip.binary,
        )


def _check_sound(media: _Checked, path: Path, seconds: int | None, sounds: bool) -> None:
    """Check the sound of a clip of `seconds` (None for a single sound); `sounds`: it must not be silent.

    Silence gets no digest: silent clips are not duplicates of each other.
    """
    media.files += 1
    if not path.exists():
        return media.add("missing-file", "missing; expected a sound", path)
    if path.suffix == LOG_MEL_SUFFIX:
        return _check_log_mel(media, path, seconds)
    try:
        samples, rate = decode_audio(path)
    except AudioError as error:
        return media.add("unreadable-file", str(error).removeprefix(f"{path}: "), path)
    length = len(samples) / rate
    if seconds is not None and abs(length - seconds) > LENGTH_TOLERANCE:
        message = f"{length:.2f} s long; expected {seconds} s, one second per picture"
        media.add("audio-length", message, path, seconds=round(length, 3), expected=seconds)
    if bad := int((~np.isfinite(samples)).sum()):
        return media.add("bad-samples", f"{bad:,} samples are NaN or infinite; expected finite samples", path)
    if samples.any():
        media.sound = hashlib.sha256(path.read_bytes()).hexdigest()
    elif sounds:
        reason = ", but the labels name a sounding object" if seconds is not None else ""
        media.add("silent-audio", f"all samples are 0{reason}", path)
    return None


def _check_log_mel(media: _Checked, path: Path, seconds: int | None) -> None:
    """Check the spectrogram that replaces the sound of a clip of `seconds` (None if any length will do)."""
    from qdformer.audio.vggish.log_mel import PATCH_SECONDS  # imported here because it loads torch
    from qdformer.audio.vggish.log_mel_pickle import read_log_mel

    try:
        patches = len(read_log_mel(path))
    except AudioError as error:
        return media.add("unreadable-file", str(error).removeprefix(f"{path}: "), path)
    expected = patches if seconds is None else int(seconds / PATCH_SECONDS)
    if patches != expected:
        message = f"{patches} patches of {PATCH_SECONDS} s; expected {expected}"
        media.add("audio-length", message, path, patches=patches, expected=expected)
    media.sound = hashlib.sha256(path.read_bytes()).hexdigest()
    return None


def _duplicates(clips: Iterable, digests: Iterable[str], what: str, root: Path) -> Iterator[Finding]:
    """Yield a finding for every group of clips with equal digests."""
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


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
