"""Prepares recordings for scenes (16 kHz, no long gaps, equal loudness) and plays them in given seconds.

Everything is computed by SciPy and NumPy with fixed settings, so that the bytes of the data set do not change.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from scipy.ndimage import uniform_filter1d
from scipy.signal import resample_poly

from qdformer.utils.constants import SAMPLE_RATE

LOUDNESS = 0.08  # RMS of the active parts of a recording
PEAK = 0.7  # largest sample of a recording, which limits the loudness of short loud sounds
_FRAME = SAMPLE_RATE // 50
_SILENCE_LEVEL = 0.1  # relative to the loud frames of the recording
_HANGOVER = 3  # frames that are kept on either side of active ones
_MAX_GAP = 10  # frames
_LEVELING = 0.35  # exponent of the gain of quiet passages; 0.5 would make all passages equally loud
_LOOP_GAP = SAMPLE_RATE // 10
_FADE = SAMPLE_RATE // 40


def read_sound(path: Path, start: float | None = None, end: float | None = None) -> np.ndarray:
    """Read a part of a sound file as float32 [samples], 16 kHz, mono. `start` and `end` are in seconds."""
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = audio.mean(axis=1)[int((start or 0) * rate) : int(end * rate) if end else None]
    divisor = np.gcd(rate, SAMPLE_RATE)
    return resample_poly(mono, SAMPLE_RATE // divisor, rate // divisor).astype(np.float32)


def normalize_recording(audio: np.ndarray) -> np.ndarray:
    """Trim a recording, shorten its gaps to 0.2 s, amplify its quiet passages and scale it to `LOUDNESS`.

    No second of the result is silent, so that every second has sound when it is looped.
    """
    loud = _loud_frames(audio)
    keep, gap = np.zeros(len(loud), dtype=bool), _MAX_GAP + 1
    for index, is_loud in enumerate(loud):
        gap = 0 if is_loud else gap + 1
        keep[index] = gap <= _MAX_GAP
    kept = np.flatnonzero(keep)
    keep[np.flatnonzero(loud)[-1] + 1 :] = False  # no gap at the end
    samples = np.repeat(keep, _FRAME)[: len(audio)]
    tidy = audio[: len(samples)][samples].copy()
    _soften_cuts(tidy, kept[keep[kept]])
    power = uniform_filter1d(np.square(tidy), SAMPLE_RATE, mode="reflect")
    tidy *= np.clip((power.mean() / power) ** _LEVELING, 0.5, 4)
    return _scaled(tidy, np.sqrt(np.mean(np.square(tidy[np.repeat(_loud_frames(tidy), _FRAME)[: len(tidy)]]))))


def normalize_noise(audio: np.ndarray) -> np.ndarray:
    """Trim the silence at both ends of a background noise and scale it to `LOUDNESS`."""
    loud = np.flatnonzero(_loud_frames(audio))
    tidy = audio[loud[0] * _FRAME : (loud[-1] + 1) * _FRAME]
    return _scaled(tidy, np.sqrt(np.mean(np.square(tidy))))


def render_sound_event(
    recording: np.ndarray, on_T: np.ndarray, speed: float, generator: np.random.Generator
) -> np.ndarray:
    """Play a recording in exactly the seconds in which `on_T` (bool [T]) is true: float32 [T * 16000].

    In every run of such seconds the recording starts at a random position, is looped as often as needed, resampled by
    `speed`, which also changes its pitch, and faded in and out.
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
    """Which 20 ms frames of the sound are active, or near an active one: bool [frames]."""
    padded = np.pad(audio, (0, -len(audio) % _FRAME))
    level = np.sqrt(np.mean(np.square(padded.reshape(-1, _FRAME)), axis=1))
    loud = level > _SILENCE_LEVEL * np.quantile(level, 0.95)
    return np.convolve(loud, np.ones(2 * _HANGOVER + 1), "same") > 0.5


def _soften_cuts(tidy: np.ndarray, kept: np.ndarray) -> None:
    """Fade 5 ms on both sides of removed frames, in place, to avoid clicks."""
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
