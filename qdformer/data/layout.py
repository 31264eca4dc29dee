"""Writing a data set in the AVSBench-Semantic layout.

    {root}/metadata.csv                       one row per clip (written last: its presence says the set is whole)
    {root}/label2idx.json, classes.csv        class names, their ids in the label maps, seen or unseen
    {root}/{subset}/{uid}/frames/{i}.jpg      one frame a second, i = 0 .. T-1
    {root}/{subset}/{uid}/labels_semantic/{i}.png   class id per pixel; only what is visible and sounds in that second
    {root}/{subset}/{uid}/audio.wav           mono, 16 bit, T seconds

Equal arguments give equal bytes. Every array that is not what its parameter says is a `DataError`.
Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qdformer.audio.io.write import PCM16_MAX, check_waveform, quantize, write_audio
from qdformer.utils.constants import IGNORE_INDEX, SAMPLE_RATE
from qdformer.utils.errors import InputError
from qdformer.utils.files import write_rows, write_text

BACKGROUND = "background"
OFF_SCREEN = "off-the-screen"  # in a_obj: something sounds that is not in the picture
METADATA_COLUMNS = ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")
EXTRA_COLUMNS = ("frames", "unseen")
JPEG_QUALITY = 95

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_CLASS_NAME = re.compile(r"[a-z0-9-]+")  # no '_': it joins the names in a_obj


class DataError(InputError):
    """The data set is not usable; the message names the clip, the file, the problem and what was expected."""


@dataclass(frozen=True)
class ClassInfo:
    """An object class. `unseen`: the test split shows pictures or recordings of it that training never holds."""

    name: str
    unseen: bool


def is_safe_name(name: str) -> bool:
    """Whether a clip id or subset can be a folder's name: letters, digits, '_', '-' and inner dots, no '..'."""
    return bool(_NAME.fullmatch(name)) and ".." not in name


def clip_folder(root: Path, subset: str, uid: str) -> Path:
    """Where a clip lies."""
    return Path(root) / subset / uid


def frame_path(folder: Path, index: int) -> Path:
    """The picture of second `index` of the clip in `folder`."""
    return folder / "frames" / f"{index}.jpg"


def label_path(folder: Path, index: int) -> Path:
    """The label map of second `index` of the clip in `folder`."""
    return folder / "labels_semantic" / f"{index}.png"


def audio_path(folder: Path) -> Path:
    """The sound of the clip in `folder`."""
    return folder / "audio.wav"


def metadata_row(
    uid: str,
    *,
    subset: str,
    split: str,
    classes: Iterable[str],
    frames: int,
    off_screen: bool = False,
    unseen: bool = False,
) -> dict[str, str | int]:
    """One row of `metadata.csv`.

    `classes` are those that sound while visible; `off_screen` says that something sounds out of the
    picture; `unseen` marks a clip all of whose classes are of the unseen kind. `a_obj` is
    'background' where nothing sounds at all.
    """
    names = sorted(set(classes)) + ([OFF_SCREEN] if off_screen else [])
    return {
        "vid": uid,
        "uid": uid,
        "s_min": 0,
        "s_sec": 0,
        "a_obj": "_".join(names) or BACKGROUND,
        "split": split,
        "label": subset,
        "frames": frames,
        "unseen": int(unseen),
    }


def write_clip(
    root: Path,
    subset: str,
    uid: str,
    frames_THWC: np.ndarray,
    labels_THW: np.ndarray,
    audio: np.ndarray,
    sample_rate: int = SAMPLE_RATE,
) -> Path:
    """Write one clip and return its folder; an interrupted call leaves no half-written clip behind.

    `frames_THWC` uint8 RGB; `labels_THW` uint8 class ids (0 background, 255 ignore); `audio` float
    [T * sample_rate] within -1..1, stored as 16 bit. A clip of the same name is replaced.
    """
    for name in (subset, uid):
        if not is_safe_name(name):
            raise DataError(f"clip {uid!r}: {name!r} cannot be a folder's name (letters, digits, '_', '-', inner '.')")
    count, height, width = _check_pictures(uid, frames_THWC, labels_THW)
    check_waveform(f"clip {uid}: audio", audio)
    if len(audio) != count * sample_rate:
        raise DataError(f"clip {uid}: audio has {len(audio)} samples; expected {count} s x {sample_rate} Hz")

    folder = clip_folder(root, subset, uid)
    partial = folder.parent / f".{uid}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    for index in range(count):
        frame, label = frame_path(partial, index), label_path(partial, index)
        if index == 0:
            frame.parent.mkdir(parents=True)
            label.parent.mkdir()
        Image.fromarray(frames_THWC[index]).save(frame, quality=JPEG_QUALITY)
        label_image = Image.fromarray(labels_THW[index])
        label_image.putpalette(PALETTE)  # shows the classes in colours; the pixel values stay class ids
        label_image.save(label)
    write_audio(audio_path(partial), quantize(audio * PCM16_MAX, 16), sample_rate=sample_rate)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def write_metadata(root: Path, rows: Sequence[Mapping[str, str | int]], classes: Sequence[ClassInfo]) -> None:
    """Write the class lists, then `metadata.csv`. Call it last, when every clip is written.

    `rows` as `metadata_row` makes them; `classes` in the order of their ids 1..C.
    """
    names = [info.name for info in classes]
    for name in names:
        if not _CLASS_NAME.fullmatch(name) or name in (BACKGROUND, OFF_SCREEN) or names.count(name) > 1:
            raise DataError(f"class {name!r}: expected a new name of lower-case letters, digits and '-'")
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    indices = {name: index for index, name in enumerate([BACKGROUND, *names])}
    write_text(root / "label2idx.json", json.dumps(indices, indent=2) + "\n")
    class_rows = [
        {"id": index, "name": info.name, "unseen": int(info.unseen)} for index, info in enumerate(classes, start=1)
    ]
    write_rows(root / "classes.csv", ("id", "name", "unseen"), class_rows)
    write_rows(root / "metadata.csv", METADATA_COLUMNS + EXTRA_COLUMNS, rows)


def _check_pictures(uid: str, frames_THWC: np.ndarray, labels_THW: np.ndarray) -> tuple[int, int, int]:
    if frames_THWC.dtype != np.uint8 or frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3:
        raise DataError(f"clip {uid}: frames are {_describe(frames_THWC)}; expected uint8 [T, H, W, 3]")
    if labels_THW.dtype != np.uint8 or labels_THW.shape != frames_THWC.shape[:3]:
        expected = list(frames_THWC.shape[:3])
        raise DataError(f"clip {uid}: labels are {_describe(labels_THW)}; expected uint8 {expected} like the frames")
    return frames_THWC.shape[:3]


def _describe(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _make_palette() -> list[int]:
    """256 RGB colours: black background, white for `IGNORE_INDEX`, hues a golden ratio apart between."""
    index = np.arange(256)
    hue = (index * 0.618034) % 1.0
    rgb = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] + np.array([0.0, 2 / 3, 1 / 3])))
    palette = (55 + 200 * rgb).astype(np.uint8)
    palette[0], palette[IGNORE_INDEX] = 0, 255
    return palette.ravel().tolist()


PALETTE = _make_palette()
"""256 x RGB, the colours that show classes in label maps."""
