"""Single recordings made fit for scenes (16 kHz, no long gaps, equally loud), and playing them by the second."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from scipy.ndimage import uniform_filter1d
from scipy.signal import resample_poly

from qdformer.utils.constants import SAMPLE_RATE

LOUDNESS = 0.08  # RMS of the parts of a recording that sound
PEAK = 0.7  # of a single recording; short loud ones stay below LOUDNESS for it
_FRAME = SAMPLE_RATE // 50
_QUIET = 0.1  # of a recording's loud frames: below this it does not sound
_HANG = 3  # frames kept on either side of what sounds
_LONGEST_GAP = 10  # frames
_EVENING = 0.35  # power to which a passage's lack of power is made good; 0.5 would make all passages equal
_LOOP_GAP = SAMPLE_RATE // 10
_FADE = SAMPLE_RATE // 40


def read_sound(path: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Read a part of a sound file as float32 [samples], 16 kHz, mono. `start` and `end` in seconds."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = audio.mean(axis=1)[int((start or 0) * rate) : int(end * rate) if end else None]
    divisor = np.gcd(rate, SAMPLE_RATE)
    return resample_poly(mono, SAMPLE_RATE // divisor, rate // divisor).astype(np.float32)


def normalize_recording(audio: np.ndarray) -> np.ndarray:
    """Trim a recording, shorten its gaps to 0.2 s, raise its quiet passages and make all equally loud.

    No second of the result is silent, so that looping it gives sound in every second.
    """
    loud = _loud_frames(audio)
    keep, gap = np.zeros(len(loud), dtype=bool), _LONGEST_GAP + 1
    for index, is_loud in enumerate(loud):
        gap = 0 if is_loud else gap + 1
        keep[index] = gap <= _LONGEST_GAP
    kept = np.flatnonzero(keep)
    keep[np.flatnonzero(loud)[-1] + 1 :] = False  # no gap at the end
    samples = np.repeat(keep, _FRAME)[: len(audio)]
    tidy = audio[: len(samples)][samples].copy()
    _soften_cuts(tidy, kept[keep[kept]])
    power = uniform_filter1d(np.square(tidy), SAMPLE_RATE, mode="reflect")
    tidy *= np.clip((power.mean() / power) ** _EVENING, 0.5, 4)
    return _scaled(tidy, np.sqrt(np.mean(np.square(tidy[np.repeat(_loud_frames(tidy), _FRAME)[: len(tidy)]]))))


def normalize_noise(audio: np.ndarray) -> np.ndarray:
    """Trim the silence off both ends of a background noise and bring it to the common loudness."""
    loud = np.flatnonzero(_loud_frames(audio))
    tidy = audio[loud[0] * _FRAME : (loud[-1] + 1) * _FRAME]
    return _scaled(tidy, np.sqrt(np.mean(np.square(tidy))))


def render_sound_event(
    recording: np.ndarray, on_T: np.ndarray, speed: float, generator: np.random.Generator
) -> np.ndarray:
    """Play a recording in the seconds that `on_T` (bool [T]) names and no others: float32 [T * 16000].

    It starts at a random place at the beginning of every run of such seconds, is repeated as often
    as needed, sped up by `speed` (pitch with it), and fades in and out within the run.
    """
    positions = np.arange(0, len(recording) - 1, speed)
    loop = np.interp(positions, np.arange(len(recording)), recording).astype(np.float32)
    loop = np.concatenate([_faded(loop), np.zeros(_LOOP_GAP, dtype=np.float32)])
    audio = np.zeros(len(on_T) * SAMPLE_RATE, dtype=np.float32)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], on_T, [False]])))
    for first, last in zip(edges[::2], edges[1::2], strict=True):
        length = (last - first) * SAMPLE_RATE
        start = generator.integers(len(loop))
        audio[first * SAMPLE_RATE : last * SAMPLE_RATE] = _faded(loop[(start + np.arange(length)) % len(loop)])
    return audio


def _loud_frames(audio: np.ndarray) -> np.ndarray:
    """Which 20 ms frames of the sound are not quiet, or near one that is not: bool [frames]."""
    padded = np.pad(audio, (0, -len(audio) % _FRAME))
    level = np.sqrt(np.mean(np.square(padded.reshape(-1, _FRAME)), axis=1))
    loud = level > _QUIET * np.quantile(level, 0.95)
    return np.convolve(loud, np.ones(2 * _HANG + 1), "same") > 0.5


def _soften_cuts(tidy: np.ndarray, kept: np.ndarray) -> None:
    """Fade 5 ms on both sides of where frames were left out, in place, against clicks."""
    ramp = np.linspace(0, 1, SAMPLE_RATE // 200, dtype=np.float32)
    for cut in (np.flatnonzero(np.diff(kept) > 1) + 1) * _FRAME:
        tidy[cut - len(ramp) : cut] *= ramp[::-1]
        tidy[cut : cut + len(ramp)] *= ramp[: len(tidy) - cut]


def _scaled(audio: np.ndarray, level: float) -> np.ndarray:
    return audio * np.float32(min(LOUDNESS / level, PEAK / np.abs(audio).max()))


def _faded(audio: np.ndarray) -> np.ndarray:
    ramp = np.linspace(0, 1, min(_FADE, len(audio) // 4), dtype=np.float32)
    faded = audio.copy()
    faded[: len(ramp)] *= ramp
    faded[len(faded) - len(ramp) :] *= ramp[::-1]
    return faded
