"""Melodies, chords and drum patterns, drawn at random and played by the instruments of a soundfont.

The melodies of a split differ from those of the others in their random numbers and in their key: tonics of training
lie between C and F sharp, those of validation on G and G sharp, those of test between A and B. A drum has no key;
its patterns differ in their random numbers alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly

from qdformer.data.readers.stamps.soundfont import Preset, Soundfont
from qdformer.utils.constants import SAMPLE_RATE, SPLITS

SECONDS = 8.0
MAX_NOTE_SECONDS = 3.0
TONICS = {"train": (0, 7), "val": (7, 9), "test": (9, 12)}
"""Semitones above C of the tonics of a split: the first, and the one after the last."""
_SYNTHESIS_RATE = 2 * SAMPLE_RATE
_SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10))
_BEATS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
_BEATS_P = (0.12, 0.34, 0.1, 0.28, 0.06, 0.1)
_KIT = {"kick": 36, "snare": 38, "hat": 42, "open": 46, "low": 45, "high": 48, "crash": 49, "ride": 51}


class Note(NamedTuple):
    """A note: start and length in seconds, key (60 is the middle C) and velocity (1 to 127)."""

    start: float
    length: float
    key: int
    velocity: int


@dataclass(frozen=True)
class Instrument:
    """A preset, what it plays, and the lowest and highest key of its melodies (for hand drums: of its drums)."""

    preset: Preset
    style: str
    low: int = 0
    high: int = 0


INSTRUMENTS = {
    "violin": Instrument(Preset(0, 40), "melody", 57, 93),
    "viola": Instrument(Preset(0, 41), "melody", 50, 81),
    "cello": Instrument(Preset(0, 42), "melody", 38, 69),
    "nylon-guitar": Instrument(Preset(0, 24), "chords", 42, 76),
    "steel-guitar": Instrument(Preset(0, 25), "chords", 42, 76),
    "jazz-guitar": Instrument(Preset(0, 26), "melody", 45, 79),
    "clean-guitar": Instrument(Preset(0, 27), "melody", 42, 79),
    "overdriven-guitar": Instrument(Preset(0, 29), "chords", 42, 72),
    "distortion-guitar": Instrument(Preset(0, 30), "chords", 42, 72),
    "trumpet": Instrument(Preset(0, 56), "melody", 55, 82),
    "harp": Instrument(Preset(0, 46), "chords", 40, 88),
    "standard-kit": Instrument(Preset(128, 0), "kit"),
    "room-kit": Instrument(Preset(128, 8), "kit"),
    "power-kit": Instrument(Preset(128, 16), "kit"),
    "jazz-kit": Instrument(Preset(128, 32), "kit"),
    "bongos-and-congas": Instrument(Preset(128, 0), "hand drums", 60, 64),
}


def play(soundfont: Soundfont, name: str, split: str, take: int) -> np.ndarray:
    """Melody number `take` of an instrument for a split: float32 [samples] at 16 kHz, `SECONDS` long."""
    instrument = INSTRUMENTS[name]
    generator = np.random.default_rng([zlib.crc32(name.encode()), SPLITS.index(split), take])
    audio = np.zeros(int(SECONDS * _SYNTHESIS_RATE), dtype=np.float32)
    for note in write_melody(instrument, split, generator):
        longest = min(MAX_NOTE_SECONDS, SECONDS - note.start)
        sound = soundfont.note(instrument.preset, note.key, note.velocity, note.length, _SYNTHESIS_RATE, longest)
        start = int(note.start * _SYNTHESIS_RATE)
        sound = sound[: len(audio) - start]
        audio[start : start + len(sound)] += sound
    peak = float(np.abs(audio).max())
    return resample_poly(audio / max(peak, 1e-6) * 0.7, SAMPLE_RATE, _SYNTHESIS_RATE).astype(np.float32)


def write_melody(instrument: Instrument, split: str, generator: np.random.Generator) -> Iterator[Note]:
    """Draw the notes of a melody."""
    beat = 60 / generator.uniform(72, 152)
    if instrument.style == "kit":
        return _kit_pattern(beat, generator)
    if instrument.style == "hand drums":
        return _hand_drum_pattern(instrument, beat, generator)
    tonic = int(generator.integers(*TONICS[split]))
    scale = _SCALES[generator.integers(len(_SCALES))]
    keys = [key for key in range(instrument.low, instrument.high + 1) if (key - tonic) % 12 in scale]
    chords = instrument.style == "chords" and generator.random() < 0.6
    return _walk(keys, beat, chords, generator)


def _walk(keys: list[int], beat: float, chords: bool, generator: np.random.Generator) -> Iterator[Note]:
    """A random walk over the keys of a scale, as single notes, chords or broken chords."""
    place = int(generator.integers(len(keys) // 4, 3 * len(keys) // 4 + 1))
    legato, loudness, time = generator.uniform(0.6, 1.1), generator.integers(60, 110), 0.0
    while time < SECONDS - 0.1:
        length = beat * float(generator.choice(_BEATS, p=_BEATS_P))
        velocity = int(np.clip(loudness + generator.integers(-15, 16), 30, 127))
        together = [place + step for step in (0, 2, 4) if place + step < len(keys)] if chords else [place]
        delay = float(generator.choice([0.0, 0.02, length / 3])) if chords else 0.0
        for number, index in enumerate(together):
            if time + number * delay < SECONDS - 0.1:
                yield Note(time + number * delay, length * legato, keys[index], velocity)
        time += length * (1 if generator.random() < 0.92 else 1.5)
        place = int(np.clip(place + generator.integers(-3, 4), 0, len(keys) - 1))


def _kit_pattern(beat: float, generator: np.random.Generator) -> Iterator[Note]:
    """A bar of sixteenths for each drum, repeated with small changes."""
    step = beat / 4
    cymbal = "ride" if generator.random() < 0.3 else "hat"
    chance = {"kick": 0.25, "snare": 0.16, cymbal: 0.5, "open": 0.04, "low": 0.06, "high": 0.06}
    bar = {drum: generator.random(16) < p for drum, p in chance.items()}
    bar["kick"][0] = bar["snare"][[4, 12]] = True
    for number in range(int((SECONDS - 0.1) / step)):
        for drum, hits in bar.items():
            if hits[number % 16] != (generator.random() < 0.04):
                yield Note(number * step, step, _KIT[drum], int(generator.integers(60, 125)))
        if number % 16 == 0 and generator.random() < 0.25:
            yield Note(number * step, 1.0, _KIT["crash"], int(generator.integers(60, 110)))


def _hand_drum_pattern(instrument: Instrument, beat: float, generator: np.random.Generator) -> Iterator[Note]:
    step = beat / 4
    bar = np.where(generator.random(16) < 0.55, generator.integers(instrument.low, instrument.high + 1, 16), 0)
    for number in range(int((SECONDS - 0.1) / step)):
        key = int(bar[number % 16])
        if generator.random() < 0.08:
            key = int(generator.integers(instrument.low, instrument.high + 1))
        if key:
            yield Note(number * step, step, key, int(generator.integers(50, 125)))
