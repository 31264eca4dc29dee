"""Random mixtures of single sources and noise, one patch long, for the pretraining of VGGish.

Shapes: B mixtures, S = 15600 samples (one VGGish patch), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qdformer.audio.io.level import SILENCE_RMS, db_to_amplitude, rms
from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.io.sound_table import read_sound_table
from qdformer.audio.io.views import random_view
from qdformer.audio.vggish.log_mel import PATCH_SAMPLES

MAX_SOURCES = 3
SPEED_RANGE = (0.85, 1.18)
SOURCE_LEVEL_RANGE_DB = (-12.0, 0.0)  # level of a source relative to the others
MIXTURE_LEVEL_RANGE_DB = (-35.0, -10.0)  # RMS of the mixture relative to full scale
NOISE_PROBABILITY, NOISE_SNR_RANGE_DB = 0.6, (-5.0, 30.0)


@dataclass(frozen=True)
class SoundSplit:
    """The sounds of one split in memory, as 16 kHz mono float32."""

    classes: tuple[str, ...]
    sources: tuple[tuple[np.ndarray, ...], ...]
    """The recordings of each class."""
    noises: tuple[np.ndarray, ...]


def load_sounds(root: str | Path, split: str, classes: tuple[str, ...] | None = None) -> SoundSplit:
    """Read the sounds of a split.

    Args:
        root: folder of `sounds.csv`.
        split: name of the split.
        classes: order of the classes; by default those of the split, sorted.

    Raises:
        AudioError: the split has no source, or a recording is not usable or silent.
    """
    table = read_sound_table(root)
    table = table[table["split"] == split]
    sources = table[table["role"] == "source"]
    classes = classes or tuple(sorted(sources["label"].unique()))
    if not classes:
        file = Path(root) / "sounds.csv"
        raise AudioError(f"{file}: no source of the split {split}; pretrain.weights: official needs none")
    recordings = []
    for name in classes:
        paths = sources["path"][sources["label"] == name]
        recordings.append(tuple(_read_audible(path) for path in paths))
    noises = tuple(_read_audible(path) for path in table["path"][table["role"] == "noise"])
    return SoundSplit(classes, tuple(recordings), noises)


class Mixer:
    """Samples mixtures of 0 to 3 classes, most of them with noise, from one random generator.

    `varied`: sources are random views of their recordings, as in the training clips of a composed data set.
    """

    def __init__(self, sounds: SoundSplit, seed: int, varied: bool = False) -> None:
        self.sounds = sounds
        self.varied = varied
        self.random = np.random.default_rng(seed)
        self.available_classes = [index for index, recordings in enumerate(sounds.sources) if recordings]

    def sample(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample `count` mixtures: waveforms [count, S] float32 and multi-hot labels [count, C] float32."""
        waveforms = np.zeros((count, PATCH_SAMPLES), np.float32)
        labels = np.zeros((count, len(self.sounds.classes)), np.float32)
        for waveform, label in zip(waveforms, labels, strict=True):
            self._mix(waveform, label)
        return waveforms, labels

    def _mix(self, waveform: np.ndarray, label: np.ndarray) -> None:
        random = self.random
        # 1 in 10 has no source, so it is silent if there is no noise either
        amount = 0 if random.random() < 0.1 else 1 + int(random.integers(min(MAX_SOURCES, len(self.available_classes))))
        for index in random.choice(self.available_classes, amount, replace=False):
            recordings = self.sounds.sources[index]
            part = cut_sound(recordings[random.integers(len(recordings))], PATCH_SAMPLES, random)
            if self.varied:
                part = random_view(part, random)
            waveform += part * db_to_amplitude(random.uniform(*SOURCE_LEVEL_RANGE_DB)) / rms(part)
            label[index] = 1
        if self.sounds.noises and random.random() < NOISE_PROBABILITY:
            noise = cut_sound(self.sounds.noises[random.integers(len(self.sounds.noises))], PATCH_SAMPLES, random)
            loudness = rms(waveform) if amount else 1.0
            waveform += noise * loudness * db_to_amplitude(-random.uniform(*NOISE_SNR_RANGE_DB)) / rms(noise)
        level = rms(waveform)
        if level > 0:
            waveform *= db_to_amplitude(random.uniform(*MIXTURE_LEVEL_RANGE_DB)) / level
        np.clip(waveform, -1, 1, out=waveform)


def cut_sound(sound: np.ndarray, samples: int, random: np.random.Generator) -> np.ndarray:
    """Cut `samples` samples from a sound at a random offset and speed; a shorter sound is repeated with pauses."""
    speed = random.uniform(*SPEED_RANGE)
    needed = int(np.ceil(samples * speed)) + 1
    if len(sound) <= needed:
        pause = np.zeros(int(random.integers(PATCH_SAMPLES // 2)), np.float32)
        period = np.concatenate([sound, pause])
        start = int(random.integers(len(period)))
        piece = np.take(period, np.arange(start, start + needed), mode="wrap")
    else:
        for _ in range(5):  # avoid the pauses of a long recording, because the cut gets its label
            start = int(random.integers(len(sound) - needed))
            piece = sound[start : start + needed]
            if rms(piece) > 0.1 * rms(sound):
                break
    part = np.interp(np.arange(samples) * speed, np.arange(needed), piece).astype(np.float32)
    return part if rms(part) > SILENCE_RMS else cut_sound(sound, samples, random)


def _read_audible(path: Path) -> np.ndarray:
    sound = read_audio(path)
    if rms(sound) <= SILENCE_RMS:
        raise AudioError(f"{path}: is silent")
    return sound
