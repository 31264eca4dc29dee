"""Writes a data set in the AVSBench-Semantic layout.

    {root}/metadata.csv                       one row per clip; written last, so its presence means a complete set
    {root}/label2idx.json, classes.csv        class names with their ids in the label maps, seen or unseen
    {root}/{subset}/{uid}/frames/{i}.jpg      one frame per second, i = 0 .. T-1
    {root}/{subset}/{uid}/labels_semantic/{i}.png   class id per pixel; only objects visible and sounding in that second
    {root}/{subset}/{uid}/audio.wav           mono, 16 bit, T seconds
    {root}/{subset}/{uid}/tracks/{i}.flac     optional: every source of that audio alone, at its level in the mixture

Equal arguments give equal bytes. Arrays of another type or shape than documented raise `DataError`.
Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qdformer.audio.io.write import PCM16_MAX, check_waveform, quantize, write_audio
from qdformer.utils.constants import IGNORE_INDEX, SAMPLE_RATE
from qdformer.utils.errors import InputError
from qdformer.utils.files import new_folder, write_rows, write_text

BACKGROUND = "background"
OFF_SCREEN = "off-the-screen"  # in a_obj: a sound comes from outside the picture
METADATA_COLUMNS = ("vid", "uid", "s_min", "s_sec", "a_obj", "split", "label")
EXTRA_COLUMNS = ("frames", "unseen", "visible")
JPEG_QUALITY = 95

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_CLASS_NAME = re.compile(r"[a-z0-9-]+")  # no '_': it joins the names in a_obj


class DataError(InputError):
    """The data set cannot be used; the message names the clip, the file, the problem and what was expected."""


@dataclass(frozen=True)
class ClassInfo:
    """An object class. `unseen`: its pictures and recordings in the test split do not occur in training."""

    name: str
    unseen: bool


def is_safe_name(name: str) -> bool:
    """Whether a uid or subset can name a folder: letters, digits, '_', '-' and inner dots, but no '..'."""
    return bool(_NAME.fullmatch(name)) and ".." not in name


def clip_folder(root: Path, subset: str, uid: str) -> Path:
    """The folder of a clip."""
    return Path(root) / subset / uid


def frame_path(folder: Path, index: int) -> Path:
    """The picture of second `index` of the clip in `folder`."""
    return folder / "frames" / f"{index}.jpg"


def label_path(folder: Path, index: int) -> Path:
    """The label map of second `index` of the clip in `folder`."""
    return folder / "labels_semantic" / f"{index}.png"


def audio_path(folder: Path) -> Path:
    """The audio file of the clip in `folder`."""
    return folder / "audio.wav"


def track_paths(folder: Path) -> list[Path]:
    """The sound files of the single sources of the clip in `folder`; empty if they are not recorded."""
    return sorted((folder / "tracks").glob("*.flac"))


def metadata_row(
    uid: str,
    *,
    subset: str,
    split: str,
    classes: Iterable[str],
    frames: int,
    off_screen: bool = False,
    unseen: bool = False,
    visible: Iterable[str] = (),
) -> dict[str, str | int]:
    """One row of `metadata.csv`.

    `classes` are the classes that sound while they are visible. `off_screen`: a sound comes from outside the picture.
    `unseen`: all classes of the clip are unseen ones. `visible`: the classes of the other objects in the picture,
    which never sound. `a_obj` becomes 'background' if nothing sounds at all.
    """
    classes = set(classes)
    names = sorted(classes) + ([OFF_SCREEN] if off_screen else [])
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
        "visible": "_".join(sorted({*classes, *visible})),
    }


def write_clip(
    root: Path,
    subset: str,
    uid: str,
    frames_THWC: np.ndarray,
    labels_THW: np.ndarray,
    audio: np.ndarray,
    sample_rate: int = SAMPLE_RATE,
    tracks: Sequence[np.ndarray] = (),
) -> Path:
    """Write one clip and return its folder. An interrupted call leaves no incomplete clip behind.

    `frames_THWC` is uint8 RGB; `labels_THW` uint8 class ids (0 background, 255 ignored); `audio` float
    [T * sample_rate] within -1..1, stored with 16 bits; `tracks` the same for each of its sources. An existing clip of
    the same name is replaced.
    """
    for name in (subset, uid):
        if not is_safe_name(name):
            raise DataError(f"clip {uid!r}: {name!r} cannot be a folder's name (letters, digits, '_', '-', inner '.')")
    count, height, width = _check_pictures(uid, frames_THWC, labels_THW)
    for name, samples in {"audio": audio, **{f"track {index}": track for index, track in enumerate(tracks)}}.items():
        check_waveform(f"clip {uid}: {name}", samples)
        if len(samples) != count * sample_rate:
            raise DataError(f"clip {uid}: {name} has {len(samples)} samples; expected {count} s x {sample_rate} Hz")

    folder = clip_folder(root, subset, uid)
    with new_folder(folder) as partial:
        frame_path(partial, 0).parent.mkdir()
        label_path(partial, 0).parent.mkdir()
        for index in range(count):
            Image.fromarray(frames_THWC[index]).save(frame_path(partial, index), quality=JPEG_QUALITY)
            label_image = Image.fromarray(labels_THW[index])
            label_image.putpalette(PALETTE)  # for display only; the pixel values remain class ids
            label_image.save(label_path(partial, index))
        write_audio(audio_path(partial), quantize(audio * PCM16_MAX, 16), sample_rate=sample_rate)
        for index, track in enumerate(tracks):
            (partial / "tracks").mkdir(exist_ok=True)
            write_audio(partial / "tracks" / f"{index}.flac", quantize(track * PCM16_MAX, 16), sample_rate=sample_rate)
    return folder


def write_metadata(root: Path, rows: Sequence[Mapping[str, str | int]], classes: Sequence[ClassInfo]) -> None:
    """Write the class lists, then `metadata.csv`. Call it after the last clip has been written.

    `rows` are made by `metadata_row`; `classes` are in the order of their ids 1..C.
    """
    names = [info.name for info in classes]
    for name in names:
        if not _CLASS_NAME.fullmatch(name) or name in (BACKGROUND, OFF_SCREEN) or names.count(name) > 1:
            raise DataError(f"class {name!r}: expected a unique name of lower-case letters, digits and '-'")
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
    """256 RGB colors: the background black, `IGNORE_INDEX` white, classes with hues in steps of the golden ratio."""
    index = np.arange(256)
    hue = (index * 0.618034) % 1.0
    rgb = 0.5 + 0.5 * np.cos(2 * np.pi * (hue[:, None] + np.array([0.0, 2 / 3, 1 / 3])))
    palette = (55 + 200 * rgb).astype(np.uint8)
    palette[0], palette[IGNORE_INDEX] = 0, 255
    return palette.ravel().tolist()


PALETTE = _make_palette()
"""256 RGB colors in one list, which display the classes of label maps."""
