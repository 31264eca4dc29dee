"""Judging a data set before anything is computed from it: every file of every clip is opened.

The rules that are not plain file damage:
- a label map is as large as its picture and holds class ids 0..C or 255 only;
- a sound lasts as many seconds as the clip has frames (within half a second) and has only finite samples;
- a clip in which something sounds, by its row or by its label maps, is not all zeros. A clip in
  which nothing sounds may be.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, UnidentifiedImageError

from qdformer.data.labels import open_labels
from qdformer.data.layout import IGNORE, DataError
from qdformer.data.manifest import read_classes, read_manifest, read_sounds

_LISTED = 10  # problems named in one message
_LENGTH_TOLERANCE = 0.5  # seconds


def check_dataset(root: str | Path) -> None:
    """Open every clip of the data set; raise one `DataError` naming clip, file and problem for what is wrong."""
    root = Path(root)
    num_classes = len(read_classes(root))
    clips = list(read_manifest(root).itertuples(index=False))
    _raise_problems(root, _in_threads(lambda clip: _clip_problem(clip, num_classes), clips))


def check_sounds(root: str | Path) -> None:
    """Open every sound of `sounds.csv`; raise one `DataError` naming file and problem for what is wrong."""
    root = Path(root)
    _raise_problems(root, _in_threads(_sound_problem, list(read_sounds(root)["path"])))


def _in_threads(check: Callable[..., str | None], items: Iterable) -> list[str]:
    """The problems found, in the order of `items`. Decoding releases the interpreter lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return [problem for problem in pool.map(check, items) if problem]


def _raise_problems(root: Path, problems: list[str]) -> None:
    if problems:
        more = [f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
        raise DataError(f"{root}: " + "\n  ".join(problems[:_LISTED] + more))


def _clip_problem(clip, num_classes: int) -> str | None:
    """The first problem of one row of the manifest."""
    try:
        sounds = not clip.silent
        for image, label in zip(clip.images, clip.labels, strict=True):
            size = _picture_size(image)
            if label is not None:
                labels = _read_labels(label, size, num_classes, clip.binary)
                sounds = sounds or bool(((labels > 0) & (labels != IGNORE)).any())
        _check_sound(clip.audio, clip.frames, sounds)
    except DataError as error:
        return f"clip {clip.uid}: {error}"
    return None


def _sound_problem(path: Path) -> str | None:
    try:
        _check_sound(path, None, sounds=True)
    except DataError as error:
        return f"sound {error}"
    return None


def _picture_size(path: Path) -> tuple[int, int]:
    """Decode a picture and return its width and height."""
    with _open_image(path) as image:
        _decode(image, path)
        return image.size


def _read_labels(path: Path, size: tuple[int, int], num_classes: int, binary: bool) -> np.ndarray:
    with _open_image(path) as image:
        if image.mode not in ("P", "L") and not (binary and image.mode == "1"):
            raise DataError(f"{path}: mode {image.mode}; expected one class id a pixel (mode P or L)")
        if image.size != size:
            raise DataError(f"{path}: {_by(image.size)} pixels; expected {_by(size)} like its picture")
        _decode(image, path)
        if binary:
            return np.asarray(open_labels(path, True, "avs"))
        labels = np.asarray(image)
    unknown = np.unique(labels[(labels > num_classes) & (labels != IGNORE)])
    if unknown.size:
        raise DataError(
            f"{path}: unknown class id {unknown[0]}; expected 0..{num_classes}, or {IGNORE} for not labelled"
        )
    return labels


def _open_image(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise DataError(f"{path}: missing; expected one for every second of the clip") from None
    except (UnidentifiedImageError, OSError, SyntaxError):
        raise DataError(f"{path}: not a readable picture (empty or damaged)") from None


def _decode(image: Image.Image, path: Path) -> None:
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: damaged picture ({error})") from None


def _check_sound(path: Path, seconds: int | None, sounds: bool) -> None:
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            audio = file.read(dtype="float32")
    except (soundfile.LibsndfileError, OSError) as error:
        problem = "missing" if not path.exists() else f"not a readable sound ({error})"
        raise DataError(f"{path}: {problem}; expected a sound file") from None
    if not len(audio) or _is_cut_short(path):
        raise DataError(f"{path}: cut short; expected as many bytes as its header says")
    if seconds is not None and abs(len(audio) / rate - seconds) > _LENGTH_TOLERANCE:
        raise DataError(f"{path}: {len(audio) / rate:.2f} s long; expected {seconds} s, one for every frame")
    if not np.isfinite(audio).all():
        raise DataError(f"{path}: holds samples that are not numbers; expected finite samples")
    if sounds and not audio.any():
        raise DataError(f"{path}: all silence, yet the labels say that something sounds")


def _is_cut_short(path: Path) -> bool:
    """Whether a WAV file is shorter than its header says; libsndfile reads what is left without a word."""
    with path.open("rb") as file:
        header = file.read(8)
        promised = int.from_bytes(header[4:8], "little") + 8
        return header[:4] == b"RIFF" and promised < 2**32 and promised > os.fstat(file.fileno()).st_size


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
