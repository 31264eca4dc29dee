"""The profile of a set of clips: what the drift of later clips is measured against, in one small file.

Shapes: N clips of the sample, A values of a VGGish embedding, D values that describe a picture, C classes.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
from PIL import Image

from qdformer.audio.io.read import LOG_MEL_SUFFIX, read_audio
from qdformer.data.manifest import read_manifest, read_sounding_names
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.errors import InputError
from qdformer.utils.files import new_file

SAMPLE = 500
"""Clips that are described; of more clips a random sample is taken."""
_SIDE = 64
_COLORS, _EDGES = 4, 16
"""Bins of each color channel, and of the strength of edges."""
_WINDOW = SAMPLE_RATE // 40
"""Samples of a window of short-time power: 25 ms."""
_FLOOR_DB, _LARGEST_SNR_DB = -100.0, 80.0


class ProfileError(InputError):
    """A profile cannot be read or made; the message names the file and what was expected."""


@dataclass(frozen=True)
class Profile:
    """The names of all clips, and a sample of them described by sound, noise, picture and classes."""

    uids: tuple[str, ...]
    audio: np.ndarray
    """[N, A]: the mean over time of the clip's VGGish embeddings."""
    pictures: np.ndarray
    """[N, D]: `describe_picture` of the middle frame."""
    classes: np.ndarray
    """[N, C]: 1 for the classes that sound while they are visible."""
    snr_db: np.ndarray
    """[N, 1]: `estimate_snr_db` of the sound; NaN if a clip has a spectrogram only."""
    class_names: tuple[str, ...]
    weights_sha256: str
    """The VGGish of `audio`: embeddings of different ones cannot be compared."""

    def __len__(self) -> int:
        """The number of clips in the sample."""
        return len(self.audio)


def profile_clips(
    dataset: Path, features: Mapping[str, np.ndarray], weights_sha256: str, only: Collection[str] | None = None
) -> Profile:
    """The profile of the training clips of `dataset`, or of those named in `only`.

    `features` are the embeddings [T, A] by uid, made with the weights `weights_sha256`. Clips without features, whose
    sound is not usable, are left out. Raises `ProfileError` if no clip is left.
    """
    clips = read_manifest(dataset)
    wanted = (clips["split"] == "train") & clips["uid"].isin(list(features))
    if only is not None:
        wanted &= clips["uid"].isin(list(only))
    clips = clips[wanted]
    if clips.empty:
        raise ProfileError(f"{dataset}: no training clip with features; expected at least one")
    sample = clips.sample(min(SAMPLE, len(clips)), random_state=0)
    names = read_sounding_names(dataset)
    return Profile(
        uids=tuple(clips["uid"]),
        audio=np.stack([features[uid].mean(axis=0) for uid in sample["uid"]]).astype(np.float32),
        pictures=np.stack([describe_picture(images[len(images) // 2]) for images in sample["images"]]),
        classes=_class_table(sample, names),
        snr_db=np.array([[_clip_snr_db(path)] for path in sample["audio"]], np.float32),
        class_names=names,
        weights_sha256=weights_sha256,
    )


def describe_picture(path: Path) -> np.ndarray:
    """The colors and edges of a picture [D]: square roots of two histograms, whose distance is Hellinger's.

    The histograms are those of the colors (4 levels of red, green and blue) and of the strength of edges (16 levels, on
    a logarithmic scale), of the picture at 64 x 64 pixels.
    """
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX), np.float32)
    levels = (pixels * _COLORS / 256).astype(int)
    colors = np.bincount((levels @ (_COLORS**2, _COLORS, 1)).ravel(), minlength=_COLORS**3)
    down, right = np.gradient(pixels.mean(axis=2))
    strength = np.log2(1 + np.hypot(down, right)) / 8  # below 1, as a gradient is at most 255 sqrt(2)
    edges = np.bincount(np.minimum(strength * _EDGES, _EDGES - 1).astype(int).ravel(), minlength=_EDGES)
    return np.sqrt(np.concatenate([colors, edges]) / _SIDE**2).astype(np.float32)


def estimate_snr_db(samples: np.ndarray) -> float:
    """A rough estimate of the signal-to-noise ratio in dB, without a clean reference.

    It is the ratio of loud moments to quiet ones, at most 80 dB: the 95th percentile of the power in windows of 25 ms
    over the 5th one. It serves to compare sets of clips; for steady sounds, such as engines, it is not the true ratio.
    """
    windows = samples[: len(samples) // _WINDOW * _WINDOW].reshape(-1, _WINDOW)
    if not len(windows):
        return 0.0
    power = np.square(windows, dtype=np.float64).mean(axis=1)
    decibels = 10 * np.log10(np.maximum(power, 10 ** (_FLOOR_DB / 10)))
    quiet, loud = np.percentile(decibels, (5, 95))
    return float(min(loud - quiet, _LARGEST_SNR_DB))


def _clip_snr_db(path: Path) -> float:
    return math.nan if path.suffix == LOG_MEL_SUFFIX else estimate_snr_db(read_audio(path))


def save_profile(path: Path, profile: Profile) -> None:
    """Write a profile as `.npz`."""
    with new_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            uids=np.array(profile.uids),
            audio=profile.audio,
            pictures=profile.pictures,
            classes=profile.classes,
            snr_db=profile.snr_db,
            class_names=np.array(profile.class_names),
            weights_sha256=np.array(profile.weights_sha256),
        )


def load_profile(path: Path) -> Profile:
    """Read a profile; raises `ProfileError` if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Profile(
                tuple(arrays["uids"].tolist()),
                arrays["audio"],
                arrays["pictures"],
                arrays["classes"],
                arrays["snr_db"],
                tuple(arrays["class_names"].tolist()),
                str(arrays["weights_sha256"]),
            )
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ProfileError(f"{path}: not a profile of training data ({type(error).__name__}: {error})") from None


def _class_table(clips: pandas.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    return np.array([[name in sounding for name in names] for sounding in clips["classes"]], np.float32)
