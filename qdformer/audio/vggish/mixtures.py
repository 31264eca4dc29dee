"""Random one-patch mixtures of single sources and noise, to train VGGish on.

Shapes: B mixtures, S = 15600 samples (one VGGish patch), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.io.sound_table import read_sound_table
from qdformer.audio.vggish.log_mel import PATCH_SAMPLES

MAX_SOURCES = 3
SPEED_RANGE = (0.85, 1.18)
SOURCE_LEVEL_RANGE_DB = (-12.0, 0.0)  # loudness of one source against the others
MIXTURE_LEVEL_RANGE_DB = (-35.0, -10.0)  # RMS of the whole mixture against full scale
NOISE_PROBABILITY, NOISE_SNR_RANGE_DB = 0.6, (-5.0, 30.0)
SILENCE = 1e-4  # RMS below which a cut of a sound is taken as silent


@dataclass(frozen=True)
class SoundSplit:
    """One split of the sounds, in memory: 16 kHz mono float32."""

    classes: tuple[str, ...]
    sources: tuple[tuple[np.ndarray, ...], ...]
    """The recordings of each class."""
    noises: tuple[np.ndarray, ...]


def load_sounds(root: str | Path, split: str, classes: tuple[str, ...] | None = None) -> SoundSplit:
    """Read the sounds of a split; `classes` (default: those of the split, sorted) gives their order.

    Raises:
        AudioError: a class has no recording in the split, or a recording is not usable or silent.
    """
    table = read_sound_table(root)
    table = table[table["split"] == split]
    sources = table[table["role"] == "source"]
    classes = classes or tuple(sorted(sources["label"].unique()))
    if not classes:
        table = Path(root) / "sounds.csv"
        raise AudioError(f"{table}: no source of the split {split}; pretrain.weights: official needs none")
    recordings = []
    for name in classes:
        paths = sources["path"][sources["label"] == name]
        recordings.append(tuple(_read_audible(path) for path in paths))
    noises = tuple(_read_audible(path) for path in table["path"][table["role"] == "noise"])
    return SoundSplit(classes, tuple(recordings), noises)


class Mixer:
    """Draws mixtures of 0 to 3 classes, with noise under most, from one stream of random numbers."""

    def __init__(self, sounds: SoundSplit, seed: int) -> None:
        self.sounds = sounds
        self.random = np.random.default_rng(seed)
        self.available_classes = [index for index, recordings in enumerate(sounds.sources) if recordings]

    def sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(waveforms [count, S] float32, labels [count, C] float32 of 0 and 1)."""
        waveforms = np.zeros((count, PATCH_SAMPLES), np.float32)
        labels = np.zeros((count, len(self.sounds.classes)), np.float32)
        for waveform, label in zip(waveforms, labels, strict=True):
            self._mix(waveform, label)
        return waveforms, labels

    def _mix(self, waveform: np.ndarray, label: np.ndarray) -> None:
        random = self.random
        # 1 in 10 holds no source; with no noise to play either, that is silence
        amount = 0 if random.random() < 0.1 else 1 + int(random.integers(min(MAX_SOURCES, len(self.available_classes))))
        for index in random.choice(self.available_classes, amount, replace=False):
            recordings = self.sounds.sources[index]
            part = self._cut(recordings[random.integers(len(recordings))])
            waveform += part * _factor(random.uniform(*SOURCE_LEVEL_RANGE_DB)) / _rms(part)
            label[index] = 1
        if self.sounds.noises and random.random() < NOISE_PROBABILITY:
            noise = self._cut(self.sounds.noises[random.integers(len(self.sounds.noises))])
            loudness = _rms(waveform) if amount else 1.0
            waveform += noise * loudness * _factor(-random.uniform(*NOISE_SNR_RANGE_DB)) / _rms(noise)
        if (rms := _rms(waveform)) > 0:
            waveform *= _factor(random.uniform(*MIXTURE_LEVEL_RANGE_DB)) / rms
        np.clip(waveform, -1, 1, out=waveform)

    def _cut(self, sound: np.ndarray) -> np.ndarray:
        """One patch of a sound at a random place and speed; a shorter sound is repeated with pauses."""
        random = self.random
        speed = random.uniform(*SPEED_RANGE)
        needed = int(np.ceil(PATCH_SAMPLES * speed)) + 1
        if len(sound) <= needed:
            pause = np.zeros(int(random.integers(PATCH_SAMPLES // 2)), np.float32)
            period = np.concatenate([sound, pause])
            start = int(random.integers(len(period)))
            piece = np.take(period, np.arange(start, start + needed), mode="wrap")
        else:
            for _ in range(5):  # a long recording has pauses of its own; a class must be heard to be named
                start = int(random.integers(len(sound) - needed))
                piece = sound[start : start + needed]
                if _rms(piece) > 0.1 * _rms(sound):
                    break
        part = np.interp(np.arange(PATCH_SAMPLES) * speed, np.arange(needed), piece).astype(np.float32)
        return part if _rms(part) > SILENCE else self._cut(sound)


def _read_audible(path: Path) -> np.ndarray:
    sound = read_audio(path)
    if _rms(sound) <= SILENCE:
        raise AudioError(f"{path}: is silent")
    return sound


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


def _factor(decibels: float) -> float:
    return 10.0 ** (decibels / 20.0)
