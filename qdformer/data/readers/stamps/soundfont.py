"""Plays notes of an SF2 soundfont (SoundFont 2.01 specification), in NumPy, so that equal notes give equal samples.

Of the specification it implements what decides how an instrument sounds: zones by key and velocity, tuning, loops, the
volume envelope and a constant low-pass filter. Modulators, the modulation envelope, vibrato, panning, reverb and chorus
are left out. Notes are mono.

Shapes: N samples of a note.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import butter, sosfilt

from qdformer.utils.errors import InputError

# Generators of the specification, section 8.1.2, and the defaults of those that are used
_START, _END, _LOOP_START, _LOOP_END, _START_COARSE = 0, 1, 2, 3, 4
_CUTOFF, _END_COARSE = 8, 12
_ATTACK, _HOLD, _DECAY, _SUSTAIN, _RELEASE = 34, 35, 36, 37, 38
_INSTRUMENT, _KEY_RANGE, _VELOCITY_RANGE, _LOOP_START_COARSE = 41, 43, 44, 45
_ATTENUATION, _LOOP_END_COARSE, _COARSE_TUNE, _FINE_TUNE, _SAMPLE, _LOOP_MODE = 48, 50, 51, 52, 53, 54
_SCALE_TUNING, _ROOT_KEY = 56, 58
_DEFAULTS = {_CUTOFF: 13500, _ATTACK: -12000, _HOLD: -12000, _DECAY: -12000, _RELEASE: -12000, _SCALE_TUNING: 100}
_DEFAULTS[_ROOT_KEY] = -1
_RANGES = (_KEY_RANGE, _VELOCITY_RANGE)
_UNSIGNED = (_INSTRUMENT, _SAMPLE)
_COARSE = 32768  # samples of one step of a coarse offset
_SILENCE_DB = 100.0
_AUDIBLE_DB = 60.0  # a note is cut where its release has fallen by this much
_ATTENUATION_FACTOR = 0.4  # as the hardware for which soundfonts are made, and FluidSynth
_OPEN_CUTOFF = 13400  # cents; no filter at or above it
_MIN_RELEASE = 0.02  # seconds, so that a note does not end with a click

Zone = dict[int, int]


class SoundfontError(InputError):
    """The soundfont cannot be read or lacks a preset; the message names the file."""


class Preset(NamedTuple):
    """A program of a bank. Bank 128 holds the drum kits, in which every key is another drum."""

    bank: int
    program: int


@dataclass(frozen=True)
class _Sample:
    start: int
    end: int
    loop_start: int
    loop_end: int
    rate: int
    key: int
    correction: int


class Soundfont:
    """A soundfont file. Its samples stay on disk until a note needs them."""

    def __init__(self, path: str | Path) -> None:
        """Read the presets. Raises `SoundfontError` if `path` is no soundfont."""
        self.path = Path(path)
        try:
            content = np.memmap(self.path, np.uint8, "r")
            chunks = _chunks(content)
            at, size = chunks[b"smpl"]
            self._samples = np.frombuffer(content, "<i2", size // 2, at)
            self._zones = _read_zones(
                {name: content[a : a + n].tobytes() for name, (a, n) in chunks.items() if n < 1e7}
            )
        except (OSError, ValueError, KeyError, IndexError, struct.error) as error:
            raise SoundfontError(f"{self.path}: not a soundfont, or damaged: {error}") from None

    def note(
        self, preset: Preset, key: int, velocity: int, seconds: float, rate: int, longest: float = 60.0
    ) -> np.ndarray:
        """A note, float32 [N] at `rate` samples per second, held for `seconds` and followed by its release.

        It is cut after `longest` seconds.

        Raises `SoundfontError` if the soundfont has no such preset, or nothing in it for this key and velocity.
        """
        if preset not in self._zones:
            raise SoundfontError(f"{self.path}: has no preset {preset.program} in bank {preset.bank}")
        voices = [
            self._voice(zone, sample, key, seconds, rate, longest)
            for zone, sample in self._zones[preset]
            if _covers(zone, _KEY_RANGE, key) and _covers(zone, _VELOCITY_RANGE, velocity)
        ]
        if not voices:
            raise SoundfontError(f"{self.path}: preset {preset} has no sample for key {key}, velocity {velocity}")
        note = np.zeros(max(len(voice) for voice in voices), dtype=np.float32)
        for voice in voices:
            note[: len(voice)] += voice
        return note * np.float32((velocity / 127) ** 2 / len(voices))

    def _voice(self, zone: Zone, sample: _Sample, key: int, seconds: float, rate: int, longest: float) -> np.ndarray:
        def get(generator: int) -> int:
            return zone.get(generator, _DEFAULTS.get(generator, 0))

        start = sample.start + get(_START) + _COARSE * get(_START_COARSE)
        end = sample.end + get(_END) + _COARSE * get(_END_COARSE)
        loop = sample.loop_start + get(_LOOP_START) + _COARSE * get(_LOOP_START_COARSE) - start
        loop_end = sample.loop_end + get(_LOOP_END) + _COARSE * get(_LOOP_END_COARSE) - start
        root = get(_ROOT_KEY) if get(_ROOT_KEY) >= 0 else sample.key
        cents = (key - root) * get(_SCALE_TUNING) + 100 * get(_COARSE_TUNE) + get(_FINE_TUNE) + sample.correction
        step = 2 ** (cents / 1200) * sample.rate / rate

        release = max(_seconds(get(_RELEASE)), _MIN_RELEASE)
        audible = min(seconds + release * _AUDIBLE_DB / _SILENCE_DB, longest)
        positions_N = np.arange(int(audible * rate)) * step
        if get(_LOOP_MODE) & 1 and loop_end > loop + 8:
            first = int(np.searchsorted(positions_N, loop_end))
            positions_N[first:] = loop + (positions_N[first:] - loop) % (loop_end - loop)
        else:
            positions_N = positions_N[: np.searchsorted(positions_N, end - start - 1)]
        whole_N = positions_N.astype(np.int32)
        part_N = (positions_N - whole_N).astype(np.float32)
        wave = self._samples[start : start + int(whole_N.max(initial=0)) + 2].astype(np.float32) / 32768
        audio_N = wave[whole_N] * (1 - part_N) + wave[whole_N + 1] * part_N
        level_db_N = self._envelope(get, len(audio_N), seconds, release, rate)
        audio_N *= np.exp((level_db_N - _ATTENUATION_FACTOR * get(_ATTENUATION) / 10) * np.float32(np.log(10) / 20))
        attack = int(_seconds(get(_ATTACK)) * rate)
        if attack > 1:
            audio_N[:attack] *= np.linspace(0, 1, attack)[: len(audio_N)]
        cutoff = 8.176 * 2 ** (get(_CUTOFF) / 1200)
        if get(_CUTOFF) < _OPEN_CUTOFF and cutoff < 0.45 * rate:
            audio_N = sosfilt(butter(2, cutoff, fs=rate, output="sos"), audio_N)
        return audio_N.astype(np.float32)

    @staticmethod
    def _envelope(get, length: int, seconds: float, release: float, rate: int) -> np.ndarray:  # type: ignore[no-untyped-def]
        """Level of the decay, sustain and release in dB [N]; the attack is linear in amplitude and applied apart."""
        time_N = np.arange(length, dtype=np.float32) / rate
        begin = _seconds(get(_ATTACK)) + _seconds(get(_HOLD))
        slope = _SILENCE_DB / max(_seconds(get(_DECAY)), 1e-3)
        level_db_N = -np.clip((time_N - begin) * slope, 0, min(get(_SUSTAIN) / 10, _SILENCE_DB))
        return level_db_N - np.clip(time_N - seconds, 0, None) * _SILENCE_DB / release


@cache
def open_soundfont(path: Path) -> Soundfont:
    """The soundfont at `path`, read once in a process."""
    return Soundfont(path)


def _seconds(timecents: int) -> float:
    return 0.0 if timecents <= -12000 else float(2 ** (timecents / 1200))


def _covers(zone: Zone, generator: int, value: int) -> bool:
    limits = zone.get(generator, 127 << 8)
    return limits & 255 <= value <= limits >> 8


def _chunks(content: np.ndarray) -> dict[bytes, tuple[int, int]]:
    """Offset and size of every chunk inside the lists of a RIFF file, by its name."""
    if content[:4].tobytes() != b"RIFF" or content[8:12].tobytes() != b"sfbk":
        raise ValueError("it has no RIFF header of type sfbk")
    chunks = {}
    at = 12
    while at + 8 <= len(content):
        name, size = struct.unpack("<4sI", content[at : at + 8].tobytes())
        if name == b"LIST":
            at += 12
            continue
        chunks[name] = (at + 8, size)
        at += 8 + size + size % 2
    return chunks


def _read_zones(chunks: dict[bytes, bytes]) -> dict[Preset, list[tuple[Zone, _Sample]]]:
    """The zones of every preset with their samples; the generators of its two levels are added up."""
    samples = [
        _Sample(start, end, loop, loop_end, rate, key, correction)
        for _, start, end, loop, loop_end, rate, key, correction, _, _ in struct.iter_unpack(
            "<20s5IBbHH", chunks[b"shdr"]
        )
    ]
    headers = list(struct.iter_unpack("<20sH", chunks[b"inst"]))
    instruments = [
        _bags(chunks, b"i", first, last, _SAMPLE) for (_, first), (_, last) in zip(headers, headers[1:], strict=False)
    ]
    zones = {}
    presets = list(struct.iter_unpack("<20s3H3I", chunks[b"phdr"]))
    for (_, program, bank, first, *_), (_, _, _, last, *_) in zip(presets, presets[1:], strict=False):
        found = []
        for outer in _bags(chunks, b"p", first, last, _INSTRUMENT):
            for inner in instruments[outer[_INSTRUMENT]]:
                zone = _combine(outer, inner)
                if zone is not None:
                    found.append((zone, samples[inner[_SAMPLE]]))
        zones[Preset(bank, program)] = found
    return zones


def _bags(chunks: dict[bytes, bytes], level: bytes, first: int, last: int, link: int) -> list[Zone]:
    """The zones `first` to `last` of a preset or an instrument that have the generator `link`.

    A first zone without it holds the defaults of the others.
    """
    bags = list(struct.iter_unpack("<HH", chunks[level + b"bag"]))
    generators = list(struct.iter_unpack("<HH", chunks[level + b"gen"]))
    zones: list[Zone] = []
    common: Zone = {}
    for index in range(first, last):
        zone = {}
        for generator, amount in generators[bags[index][0] : bags[index + 1][0]]:
            signed = generator not in (*_RANGES, *_UNSIGNED) and amount > 32767
            zone[generator] = amount - 65536 if signed else amount
        if link in zone:
            zones.append({**common, **zone})
        elif index == first:
            common = zone
    return zones


def _combine(outer: Zone, inner: Zone) -> Zone | None:
    """An instrument's zone inside a preset's: their ranges intersect, other values of the preset are added."""
    zone = {**_DEFAULTS, **inner}
    for generator, amount in outer.items():
        if generator in _RANGES:
            limits = zone.get(generator, 127 << 8)
            low, high = max(limits & 255, amount & 255), min(limits >> 8, amount >> 8)
            if low > high:
                return None
            zone[generator] = high << 8 | low
        elif generator != _INSTRUMENT:
            zone[generator] = zone.get(generator, 0) + amount
    return zone
