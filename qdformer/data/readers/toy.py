"""The `toy` data set: drawn shapes with synthetic sounds, composed in seconds without any input, for tests.

Each class is one shape and one timbre. Size, color, angle, position and pitch vary, so that only shape and timbre
distinguish the classes. A clip shows one or two large shapes that drift and turn over a textured background. In each
second some of them sound and others are mute; sometimes a class sounds from outside the frame, or nothing sounds.
Two shapes of one class sound together, because their sounds could not be told apart. For the classes marked unseen, the
test split has colors and pitches that do not occur in training. Equal settings give equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from qdformer.audio.io.sound_table import sound_row, write_single_sound, write_sound_table
from qdformer.data.layout import ClassInfo, metadata_row, write_clip, write_metadata
from qdformer.data.readers.composition import Composition, composition_of
from qdformer.utils.constants import SAMPLE_RATE, SPLITS

if TYPE_CHECKING:
    from qdformer.config.download import Download

SUBSET = "v1m"
SOUND_SECONDS = 3
SOUNDS_PER_CLASS = {"train": 4, "val": 1, "test": 2}
NOISES: Mapping[str, Mapping[str, float | None]] = {
    "train": {"white": 0.0, "pink": 1.0, "hum50": None},
    "val": {"grey": 0.5, "hum60": None},
    "test": {"brown": 2.0, "blue": -1.0, "hum70": None},
}
"""Noises of each split: by name, the exponent with which the power falls with frequency (0 white, 1 pink, 2 brown), or
None for the hum of a mains frequency."""
_SUPERSAMPLE = 4  # shapes are drawn this much larger, for smooth edges


@dataclass(frozen=True)
class ToyClass:
    """A shape, the sound it makes, and whether the test split shows and plays it as training never does."""

    name: str
    outline: Callable[[], np.ndarray]
    timbre: Callable[[np.ndarray, float, np.random.Generator], np.ndarray]
    pitches: tuple[float, float]
    unseen: bool


@dataclass(frozen=True)
class _Actor:
    """One shape of a clip: class index, path over the seconds, and look."""

    index: int
    place_T2: np.ndarray
    angle_T: np.ndarray
    radius: float
    color: tuple[int, ...]


def compose_toy(root_dataset: str | Path, root_sounds: str | Path, download: Download) -> None:
    """Write the clips of every split, then the single sounds and the background noise."""
    rows = []
    composition = composition_of(download)
    for number, split in enumerate(SPLITS):
        for clip in range(getattr(composition.clips, split)):
            generator = np.random.default_rng([composition.seed, number, clip])
            rows.append(_compose_clip(Path(root_dataset), f"{split}-{clip:04d}", split, composition, generator))
    write_metadata(Path(root_dataset), rows, [ClassInfo(kind.name, kind.unseen) for kind in CLASSES])
    _compose_sounds(Path(root_sounds), composition.seed)


def _compose_clip(
    root: Path, uid: str, split: str, composition: Composition, generator: np.random.Generator
) -> dict[str, str | int]:
    """Write one clip and return its row of the metadata."""
    seconds, size = composition.frames, composition.image_size
    actors = _cast(generator, split, seconds)
    sounding_TC = _schedule(generator, sorted({actor.index for actor in actors}), seconds)
    ground = _ground(generator, size)
    frames = np.empty((seconds, size, size, 3), np.uint8)
    labels = np.zeros((seconds, size, size), np.uint8)
    for second in range(seconds):
        frames[second], labels[second] = _draw(ground, actors, sounding_TC[second], second, size)

    tracks = [np.zeros(seconds * SAMPLE_RATE)]
    for index in np.flatnonzero(sounding_TC.any(axis=0)):
        voice = _voice(CLASSES[index], split, seconds, generator)
        tracks.append(voice * generator.uniform(0.5, 1.0) * _gate(sounding_TC[:, index]))
    audio = np.sum(tracks, axis=0)
    peak = max(np.abs(sound).max() for sound in (audio, *tracks))
    if peak > 0:
        gain = generator.uniform(0.4, 0.9) / peak
        audio, tracks = audio * gain, [track * gain for track in tracks]
    kept_tracks = tracks[1:] if split == "test" else []  # only evaluation needs them
    write_clip(root, SUBSET, uid, frames, labels, audio, tracks=kept_tracks)

    shown = [index - 1 for index in np.unique(labels) if index]
    visible = np.zeros_like(sounding_TC)
    for second in range(seconds):
        visible[second, [index - 1 for index in np.unique(labels[second]) if index]] = True
    return metadata_row(
        uid,
        subset=SUBSET,
        split=split,
        classes=[CLASSES[index].name for index in shown],
        frames=seconds,
        off_screen=bool((sounding_TC & ~visible).any()),
        unseen=bool(shown) and all(CLASSES[index].unseen for index in shown),
        visible=[CLASSES[actor.index].name for actor in actors],
    )


def _cast(generator: np.random.Generator, split: str, seconds: int) -> list[_Actor]:
    """One or two shapes, from back to front."""
    actors = []
    for _ in range(generator.integers(1, 3)):
        index = int(generator.integers(len(CLASSES)))
        start, drift = generator.uniform(0.2, 0.8, 2), generator.uniform(-0.12, 0.12, 2)
        path = start + drift * np.arange(seconds)[:, None]
        path = 0.15 + np.abs((path - 0.15) % 1.4 - 0.7)  # turns back at 0.15 and 0.85
        angle = generator.uniform(-0.4, 0.4) + generator.uniform(-0.2, 0.2) * np.arange(seconds)
        look = _color(_draw_share(generator, split, CLASSES[index].unseen), generator)
        actors.append(_Actor(index, path, angle, generator.uniform(0.24, 0.34), look))
    return actors


def _schedule(generator: np.random.Generator, present: list[int], seconds: int) -> np.ndarray:
    """Which classes sound in each second, bool [T, C]: those `present` in the frame, sometimes another one too."""
    sounding = np.zeros((seconds, len(CLASSES)), bool)
    if generator.random() < 0.06:
        return sounding  # nothing sounds at all
    for second in range(seconds):
        if generator.random() < 0.08:
            continue
        chosen = [index for index in present if generator.random() < 0.6]
        sounding[second, chosen or [present[generator.integers(len(present))]]] = True
    if generator.random() < 0.2:
        absent = [index for index in range(len(CLASSES)) if index not in present]
        first = generator.integers(seconds)
        sounding[first : first + 2, absent[generator.integers(len(absent))]] = True
    return sounding


def _draw_share(generator: np.random.Generator, split: str, unseen: bool) -> float:
    """A number in 0..1 for a pitch or a hue. For an unseen class, test draws from gaps that training leaves free."""
    if not unseen:
        return generator.uniform()
    step = generator.integers(3)
    low, high = (0.0, 0.2) if split == "test" else (0.2, 1.0)
    return (step + generator.uniform(low, high)) / 3


def _color(hue: float, generator: np.random.Generator) -> tuple[int, ...]:
    rgb = 0.5 + 0.5 * np.cos(2 * np.pi * (hue + np.array([0.0, 1 / 3, 2 / 3])))
    rgb = generator.uniform(0.75, 1.0) * (0.15 + 0.85 * rgb)
    return tuple(int(value) for value in np.round(255 * rgb))


def _ground(generator: np.random.Generator, size: int) -> np.ndarray:
    """[H, W, 3] float 0..255: soft gray patches under a faint tint."""
    tint = 0.5 + 0.5 * np.cos(2 * np.pi * (generator.uniform() + np.array([0.0, 1 / 3, 2 / 3])))
    coarse = np.clip(generator.normal(0.38, 0.13, (5, 5)), 0, 1)
    soft = Image.fromarray((255 * coarse).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    fine = generator.normal(0, 5, (size, size, 1))
    return np.asarray(soft, np.float64)[..., None] * (0.75 + 0.35 * tint) + fine


def _draw(
    ground: np.ndarray, actors: list[_Actor], sounding: np.ndarray, second: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The picture [H, W, 3] and the label map [H, W] of one second."""
    picture, labels = ground.copy(), np.zeros((size, size), np.uint8)
    for actor in actors:
        cover = _silhouette(actor, second, size)
        lit = np.linspace(1.12, 0.82, size)[:, None, None]  # light from above
        picture += cover[..., None] * (np.array(actor.color) * lit - picture)
        labels[cover >= 0.5] = actor.index + 1 if sounding[actor.index] else 0
    return np.clip(np.round(picture), 0, 255).astype(np.uint8), labels


def _silhouette(actor: _Actor, second: int, size: int) -> np.ndarray:
    """[H, W] share of each pixel that the shape covers."""
    scale = size * _SUPERSAMPLE
    cos, sin = np.cos(actor.angle_T[second]), np.sin(actor.angle_T[second])
    turned = CLASSES[actor.index].outline() @ np.array([[cos, sin], [-sin, cos]])
    points = (actor.place_T2[second] + actor.radius * turned) * scale
    canvas = Image.new("L", (scale, scale))
    ImageDraw.Draw(canvas).polygon([tuple(point) for point in points], fill=255)
    return np.asarray(canvas.reduce(_SUPERSAMPLE), np.float64) / 255


def _circle() -> np.ndarray:
    return _polar(np.ones(40)) * 0.9


def _square() -> np.ndarray:
    return _polar(np.ones(4))


def _triangle() -> np.ndarray:
    return _polar(np.ones(3)) * 1.1


def _star() -> np.ndarray:
    return _polar(np.tile([1.15, 0.48], 5))


def _cross() -> np.ndarray:
    arm, end = 0.3, 1.0
    quarter = np.array([[end, -arm], [end, arm], [arm, arm]])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, count) for count in range(4)])


def _polar(radii: np.ndarray) -> np.ndarray:
    """[points, 2] at equal angles."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _flute(time: np.ndarray, pitch: float, generator: np.random.Generator) -> np.ndarray:
    """Nearly one partial, with vibrato and a little breath."""
    phase = 2 * np.pi * pitch * time + 1.5 * np.sin(2 * np.pi * generator.uniform(4, 6) * time)
    return np.sin(phase) + 0.15 * np.sin(2 * phase) + 0.02 * generator.standard_normal(len(time))


def _reed(time: np.ndarray, pitch: float, generator: np.random.Generator) -> np.ndarray:
    """A low, buzzing tone of many odd partials."""
    phase = 2 * np.pi * (pitch * time + generator.uniform())
    return np.asarray(sum(np.sin(order * phase) / order**0.7 for order in range(1, 22, 2))) / 2.5


def _bell(time: np.ndarray, pitch: float, generator: np.random.Generator) -> np.ndarray:
    """Struck twice a second; partials out of harmony that die away."""
    since = (time + generator.uniform(0, 0.5)) % 0.5
    partials = zip((1.0, 2.76, 5.4), (1.0, 0.6, 0.3), (5, 8, 12), strict=True)
    tones = (
        level * np.exp(-decay * since) * np.sin(2 * np.pi * pitch * ratio * since) for ratio, level, decay in partials
    )
    return np.asarray(sum(tones))


def _chirp(time: np.ndarray, pitch: float, generator: np.random.Generator) -> np.ndarray:
    """Six fast upward sweeps a second."""
    share = (6 * time + generator.uniform()) % 1.0
    phase = 2 * np.pi * pitch * (share + 0.5 * share**2) / 6
    return np.sin(phase) * np.sin(np.pi * share) ** 2


def _rattle(time: np.ndarray, pitch: float, generator: np.random.Generator) -> np.ndarray:
    """Bursts of noise around `pitch`, nine a second."""
    spectrum = np.fft.rfft(generator.standard_normal(len(time)))
    frequency = np.fft.rfftfreq(len(time), 1 / SAMPLE_RATE)
    band = np.fft.irfft(spectrum * np.exp(-(((frequency - pitch) / (0.35 * pitch)) ** 2)), len(time))
    share = (9 * time + generator.uniform()) % 1.0
    return band / np.abs(band).max() * np.exp(-5 * share)


CLASSES = (
    ToyClass("circle", _circle, _flute, (700, 1400), unseen=False),
    ToyClass("square", _square, _reed, (90, 180), unseen=True),
    ToyClass("triangle", _triangle, _bell, (300, 600), unseen=False),
    ToyClass("star", _star, _chirp, (2600, 3600), unseen=True),
    ToyClass("cross", _cross, _rattle, (800, 2000), unseen=False),
)


def _voice(kind: ToyClass, split: str, seconds: int, generator: np.random.Generator) -> np.ndarray:
    """[samples] of a class's sound at a pitch of the split, RMS 0.2."""
    low, high = kind.pitches
    pitch = low * (high / low) ** _draw_share(generator, split, kind.unseen)
    sound = kind.timbre(np.arange(seconds * SAMPLE_RATE) / SAMPLE_RATE, pitch, generator)
    return 0.2 * sound / np.sqrt(np.mean(sound**2))


def _gate(sounding_T: np.ndarray) -> np.ndarray:
    """[samples] 1 in the seconds that sound, with ramps of 20 ms inside them so that nothing clicks."""
    ramp = np.minimum(1.0, np.arange(SAMPLE_RATE) / (0.02 * SAMPLE_RATE))
    gates = []
    for second, sounds in enumerate(sounding_T):
        gate = np.full(SAMPLE_RATE, float(sounds))
        if sounds and (second == 0 or not sounding_T[second - 1]):
            gate *= ramp
        if sounds and (second == len(sounding_T) - 1 or not sounding_T[second + 1]):
            gate *= ramp[::-1]
        gates.append(gate)
    return np.concatenate(gates)


def _compose_sounds(root: Path, seed: int) -> None:
    rows = []
    for number, split in enumerate(SPLITS):
        generator = np.random.default_rng([seed, len(SPLITS) + number])
        for kind in CLASSES:
            for take in range(SOUNDS_PER_CLASS[split]):
                path = f"{split}/{kind.name}-{take}.flac"
                write_single_sound(root, path, _faded(_voice(kind, split, SOUND_SECONDS, generator)))
                rows.append(sound_row(path, role="source", split=split, label=kind.name))
        for name, slope in NOISES[split].items():
            path = f"{split}/noise-{name}.flac"
            write_single_sound(root, path, _faded(_noise(name, slope, generator)))
            rows.append(sound_row(path, role="noise", split=split))
    write_sound_table(root, rows)


def _noise(name: str, slope: float | None, generator: np.random.Generator) -> np.ndarray:
    """[samples] of colored noise, or the hum of the mains frequency in its name; RMS 0.15."""
    samples = 2 * SOUND_SECONDS * SAMPLE_RATE
    if slope is None:
        mains = float(name.removeprefix("hum"))
        phase = 2 * np.pi * mains * np.arange(samples) / SAMPLE_RATE
        sound = sum(generator.uniform(0.3, 1) / order * np.sin(order * phase) for order in range(1, 9))
        sound += 0.05 * generator.standard_normal(samples)
    else:
        frequency = np.maximum(np.fft.rfftfreq(samples, 1 / SAMPLE_RATE), 20.0)
        sound = np.fft.irfft(np.fft.rfft(generator.standard_normal(samples)) * frequency ** (-slope / 2), samples)
    return 0.15 * sound / np.sqrt(np.mean(sound**2))


def _faded(sound: np.ndarray) -> np.ndarray:
    """`sound` within -1..1 with soft ends."""
    ramp = np.minimum(1.0, np.arange(len(sound)) / (0.01 * SAMPLE_RATE))
    return sound * ramp * ramp[::-1] / max(1.0, np.abs(sound).max())
