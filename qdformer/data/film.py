"""Composes a long video from the cut-outs and sounds of `stamps`, with the true masks of every moment.

Objects slide in, move and leave again in three lanes, so that up to three are visible. Each sounds in stretches of its
own, which begin and end at any time, not at full seconds; at most two sound at once. Some objects never sound, some
cut-outs belong to no class, some sounds come from outside the frame, and a background noise plays throughout. The
photo behind the objects changes every `SHOT_SECONDS`. As in the data set, all visible objects of a class that sounds
are labeled. Equal arguments give equal films.

Shapes: H W pixels, S samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from qdformer.data.readers.stamps.assets import load_assets
from qdformer.data.readers.stamps.catalogue import catalogue_classes, read_catalogue, select_items
from qdformer.data.readers.stamps.fetch import fetch
from qdformer.utils.constants import SAMPLE_RATE

if TYPE_CHECKING:
    from qdformer.data.readers.stamps.assets import Assets
    from qdformer.data.readers.stamps.catalogue import CatalogueItem

LANES = 3
SHOT_SECONDS = 20.0
STAY_SECONDS, AWAY_SECONDS = (6.0, 14.0), (0.5, 4.0)
ON_SECONDS, OFF_SECONDS = (2.0, 6.0), (1.0, 4.0)
SLIDE_SECONDS = 0.8
MUTE_P, CLUTTER_P = 0.15, 0.15
OFF_SCREEN_PER_MINUTE = 2
MAX_SIMULTANEOUS_SOUNDS = 2
SIDE_RANGE = (0.38, 0.62)  # longer side of an object relative to the height of the frame
_FADE = SAMPLE_RATE // 40


@dataclass(frozen=True)
class Stay:
    """A cut-out from the time it slides in until it has left; times in seconds, places relative to the frame.

    `label` is its class id, 0 for a cut-out of no class.
    """

    item: CatalogueItem
    label: int
    start: float
    end: float
    edge: int
    """Side from which it comes and to which it leaves: -1 left, 1 right, 0 below."""
    first_2: tuple[float, float]
    last_2: tuple[float, float]
    side: float
    angles_2: tuple[float, float]
    flip: bool


@dataclass(frozen=True)
class Play:
    """A stretch of a sound; `item` is the recording, `label` its class id, times are in seconds."""

    item: CatalogueItem
    label: int
    start: float
    end: float


def load_film_assets(cache: str | Path, split: str = "test", progress: bool = True) -> Assets:
    """The pictures and sounds of `stamps` that a split may use, from the folder of its downloads.

    Files that are missing there are downloaded. Raises `FetchError` if that fails.
    """
    catalogue = read_catalogue()
    items = [item for item in catalogue if item.split in (split, "all")]
    loaded = load_assets(items, fetch((item.source for item in items), Path(cache), progress))
    return replace(loaded, classes=catalogue_classes(catalogue))


class Film:
    """A composed video of `seconds` seconds at `frame_rate`, drawn and mixed when it is asked for.

    Args:
        assets: the pictures and sounds of `stamps`.
        seconds: length.
        seed: the same seed gives the same film.
        split: whose pictures and sounds are used.
        size: width and height in pixels, even numbers.
        frame_rate: frames per second.
        snr_db: level of all sounds together above the background noise, in dB; None: no noise.
    """

    def __init__(
        self,
        assets: Assets,
        seconds: float = 60.0,
        seed: int = 0,
        split: str = "test",
        size: tuple[int, int] = (640, 480),
        frame_rate: int = 25,
        snr_db: float | None = 15.0,
    ) -> None:
        self.assets, self.seconds, self.size, self.frame_rate, self.snr_db = assets, seconds, size, frame_rate, snr_db
        self._split, self._generator = split, np.random.default_rng([seed, 60])
        self._decks: dict[str, list[int]] = {}
        self.stays = sorted((stay for lane in range(LANES) for stay in self._fill_lane(lane)), key=lambda s: s.start)
        self.plays = self._schedule()
        self._shots = [self._shot() for _ in range(int(np.ceil(seconds / SHOT_SECONDS)))]
        self._sprites: dict[Stay, Image.Image] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes 1..C."""
        return tuple(info.name for info in self.assets.classes)

    @property
    def frame_count(self) -> int:
        return round(self.seconds * self.frame_rate)

    def frames(self) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
        """Time, picture uint8 [H, W, 3] and class of each pixel uint8 [H, W] of all frames."""
        for index in range(self.frame_count):
            time = index / self.frame_rate
            yield time, *self.draw(time)

    def sounding(self, time: float) -> set[int]:
        """The class ids that sound at a time, visible or not."""
        return {play.label for play in self.plays if play.start <= time < play.end}

    def draw(self, time: float) -> tuple[np.ndarray, np.ndarray]:
        """The picture uint8 [H, W, 3] at a time, and the class of each pixel uint8 [H, W]: 0 background or silent."""
        width, height = self.size
        sounding = self.sounding(time)
        image_HW3 = self._background(time)
        labels_HW = np.zeros((height, width), np.uint8)
        for stay in self.stays:
            if stay.start <= time < stay.end:
                posed_hw4, left, top = self._pose(stay, time)
                x, y = max(0, left), max(0, top)
                part_hw4 = posed_hw4[y - top : max(0, height - top), x - left : max(0, width - left)]
                if not part_hw4.size:
                    continue
                area = slice(y, y + part_hw4.shape[0]), slice(x, x + part_hw4.shape[1])
                alpha_hw1 = part_hw4[..., 3:].astype(np.float32) / 255
                image_HW3[area] += alpha_hw1 * (part_hw4[..., :3] - image_HW3[area])
                labels_HW[area][alpha_hw1[..., 0] > 0.5] = stay.label if stay.label in sounding else 0
        return np.clip(image_HW3, 0, 255).round().astype(np.uint8), labels_HW

    def sound(self) -> np.ndarray:
        """The whole sound, float32 [S], 16 kHz, mono."""
        generator = np.random.default_rng(len(self.plays))
        mixed_S = np.zeros(round(self.seconds * SAMPLE_RATE), np.float32)
        for play in self.plays:
            first, last = round(play.start * SAMPLE_RATE), min(round(play.end * SAMPLE_RATE), len(mixed_S))
            mixed_S[first:last] += _looped(self.assets.sounds[play.item], last - first, generator)
        if self.snr_db is not None and self.plays:
            noise_S = self._noise(len(mixed_S), generator)
            active = np.abs(mixed_S) > 0
            ratio = np.sqrt(np.mean(mixed_S[active] ** 2) / np.mean(noise_S**2)) / 10 ** (self.snr_db / 20)
            mixed_S += ratio * noise_S
        return (mixed_S / max(1.0, float(np.abs(mixed_S).max()))).astype(np.float32)

    def _uniform(self, bounds: tuple[float, float]) -> float:
        return float(self._generator.uniform(*bounds))

    def _pick(self, role: str, label: int = 0) -> CatalogueItem:
        name = self.classes[label - 1] if label else ""
        items = select_items(self.assets.items, role, self._split, name)
        return items[self._generator.integers(len(items))]

    def _deal(self, deck: str) -> int:
        """A class id from a shuffled deck of all classes."""
        if not self._decks.get(deck):
            self._decks[deck] = (self._generator.permutation(len(self.classes)) + 1).tolist()
        return self._decks[deck].pop()

    def _fill_lane(self, lane: int) -> Iterator[Stay]:
        time = self._uniform((0.0, 2.0)) if lane else 0.0
        low, high = (lane + 0.35) / LANES, (lane + 0.65) / LANES
        while time < self.seconds - 1:
            end = min(time + self._uniform(STAY_SECONDS), self.seconds + 1)
            clutter = self._generator.random() < CLUTTER_P
            label = 0 if clutter else self._deal("visible")
            angle = self._uniform((-12, 12))
            yield Stay(
                item=self._pick("clutter") if clutter else self._pick("picture", label),
                label=label,
                start=time,
                end=end,
                edge=(-1, 0, 1)[lane],
                first_2=(self._uniform((low, high)), self._uniform((0.35, 0.65))),
                last_2=(self._uniform((low, high)), self._uniform((0.35, 0.65))),
                side=self._uniform(SIDE_RANGE),
                angles_2=(angle, angle + self._uniform((-10, 10))),
                flip=bool(self._generator.random() < 0.5),
            )
            time = end + self._uniform(AWAY_SECONDS)

    def _schedule(self) -> list[Play]:
        """Sounds of the visible objects and from outside; one that would be the third at a time is left out."""
        wanted: list[Play] = []
        for stay in self.stays:
            if stay.label and self._generator.random() >= MUTE_P:
                recording, time = self._pick("sound", stay.label), stay.start + self._uniform((0.0, 1.5))
                while time < stay.end - 1:
                    end = min(time + self._uniform(ON_SECONDS), stay.end, self.seconds)
                    wanted.append(Play(recording, stay.label, time, end))
                    time = end + self._uniform(OFF_SECONDS)
        for _ in range(round(self.seconds / 60 * OFF_SCREEN_PER_MINUTE)):
            label, start = self._deal("outside"), self._uniform((0.0, self.seconds - 3))
            if not any(s.label == label and s.start < start + 3 and s.end > start for s in self.stays):
                wanted.append(Play(self._pick("sound", label), label, start, start + 3))
        plays: list[Play] = []
        for play in sorted(wanted, key=lambda p: p.start):
            if play.end - play.start > 0.5 and sum(p.end > play.start for p in plays) < MAX_SIMULTANEOUS_SOUNDS:
                plays.append(play)
        return plays

    def _shot(self) -> tuple[CatalogueItem, np.ndarray, float]:
        return self._pick("background"), self._generator.uniform(0, 1, (2, 2)), self._uniform((0.6, 0.9))

    def _background(self, time: float) -> np.ndarray:
        """A slow movement over the photo of the shot, float32 [H, W, 3]."""
        width, height = self.size
        number = min(int(time / SHOT_SECONDS), len(self._shots) - 1)
        item, corners_22, zoom = self._shots[number]
        photo = self.assets.pictures[item]
        scale = zoom * min(photo.width / width, photo.height / height)
        share = (time - number * SHOT_SECONDS) / SHOT_SECONDS
        place_2 = corners_22[0] + share * 0.4 * (corners_22[1] - corners_22[0])
        left, top = place_2 * (photo.width - scale * width, photo.height - scale * height)
        box = (left, top, left + scale * width, top + scale * height)
        return np.asarray(photo.resize(self.size, Image.Resampling.BILINEAR, box), np.float32)

    def _pose(self, stay: Stay, time: float) -> tuple[np.ndarray, int, int]:
        """The cut-out as it is at a time, uint8 [h, w, 4], and the left and top of its place in the frame."""
        width, height = self.size
        if stay not in self._sprites:
            picture = self.assets.pictures[stay.item]
            scale = stay.side * height / max(picture.size)
            sprite = picture.resize([max(2, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
            self._sprites[stay] = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if stay.flip else sprite
        share = (time - stay.start) / (stay.end - stay.start)
        x, y = (first + share * (last - first) for first, last in zip(stay.first_2, stay.last_2, strict=True))
        outside = max(0.0, 1 - min(time - stay.start, stay.end - time) / SLIDE_SECONDS) ** 2
        x, y = x + stay.edge * outside * 0.6, y + (not stay.edge) * outside * 0.9
        angle = stay.angles_2[0] + share * (stay.angles_2[1] - stay.angles_2[0])
        posed = self._sprites[stay].rotate(angle, Image.Resampling.BILINEAR, expand=True)
        return np.asarray(posed), round(x * width - posed.width / 2), round(y * height - posed.height / 2)

    def _noise(self, length: int, generator: np.random.Generator) -> np.ndarray:
        """Noises of the split, each for some seconds, one after another."""
        items = select_items(self.assets.items, "noise", self._split)
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < length:
            noise_S = self.assets.sounds[items[generator.integers(len(items))]]
            parts.append(_looped(noise_S, round(SHOT_SECONDS * SAMPLE_RATE), generator))
        return np.concatenate(parts)[:length]


def _looped(recording_S: np.ndarray, length: int, generator: np.random.Generator) -> np.ndarray:
    """A recording from a random position on, repeated as often as needed, with short fades at both ends."""
    start = int(generator.integers(len(recording_S)))
    sound_S = recording_S[(start + np.arange(length)) % len(recording_S)].astype(np.float32)
    ramp = np.linspace(0, 1, min(_FADE, length // 2), dtype=np.float32)
    sound_S[: len(ramp)] *= ramp
    sound_S[length - len(ramp) :] *= ramp[::-1]
    return sound_S


def on_off(plays: Sequence[Play], label: int) -> list[tuple[float, float]]:
    """The stretches, (start, end) in seconds, in which a class sounds; overlapping ones are joined."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted((play.start, play.end) for play in plays if play.label == label):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined
