"""Plans the scenes of clips: which objects are visible, how they move, and when which sound plays.

The rules of a scene:

* One to three objects move over a photo, together with up to two silent cut-outs of no class (clutter). Objects may
  overlap.
* Every sounding class has its own on/off schedule by the second; at most two classes sound at the same time. Some
  visible objects never sound, and some sounds come from outside the frame.
* In every second clip (a duet) two classes are visible and sound together for at least two seconds.
* Sounds of training are played at more speeds than those of the other splits, and as random views (`random_view`).
* Subset `v1s` holds the clips in which one class sounds, `v1m` those with several.

Shapes: T frames (one per second), V sound events, A actors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qdformer.data.readers.composition import composition_of
from qdformer.data.readers.stamps.catalogue import CatalogueItem, select_items
from qdformer.utils.constants import SPLITS

if TYPE_CHECKING:
    from PIL import Image

    from qdformer.config.download import Download
    from qdformer.data.readers.stamps.assets import Assets

NUM_OBJECTS_P = (0.3, 0.4, 0.3)  # probability of one, two, three visible objects
NUM_CLUTTER_P = (0.45, 0.35, 0.2)  # probability of zero, one, two clutter cut-outs
MAX_ACTORS = 4
SAME_CLASS_P = 0.25  # probability that the second object has the class of the first, except in duets
MUTE_P = 0.4  # probability that an object other than the first never sounds
OFF_SCREEN_P = 0.2  # probability of a sound from outside the frame
START_ON_P = 0.6  # probability that a sound is on in the first second
KEEP_STATE_P = 0.6  # probability that a sound stays on or off from one second to the next
MAX_SIMULTANEOUS_SOUNDS = 2
DUET_SECONDS = 2  # seconds in which the two objects of a duet sound together, at least
GAIN_RANGE_DB = (-4.0, 0.0)  # of a sound; all recordings have the same loudness
SPEED_RANGES = {"train": (0.84, 1.19), "val": (0.93, 1.07), "test": (0.93, 1.07)}
SIDE_RANGE = (0.15, 0.6)  # longer side of an object relative to the side of the frame
_SQRT_AREA_RANGE = (0.32, 0.58)  # square root of the area of its box, likewise, before it is clipped to SIDE_RANGE
_MAX_COVERED = 0.4  # largest fraction of an object's box behind other boxes that is accepted at once
_MAX_TRIES = 20


@dataclass(frozen=True)
class Actor:
    """A cut-out in a scene. `label` is its class id, 0 for clutter. Lists of actors run from back to front."""

    item: CatalogueItem
    label: int
    center_T2: np.ndarray
    side_T: np.ndarray
    angle_T: np.ndarray
    flip: bool


@dataclass(frozen=True)
class SoundEvent:
    """A sound in a scene: class id, recording, the seconds in which it plays, gain in dB and playback speed.

    `varied`: it is played as a random view.
    """

    label: int
    item: CatalogueItem
    on_T: np.ndarray
    gain_db: float
    speed: float
    varied: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything that is decided about a clip before it is rendered."""

    uid: str
    split: str
    subset: str
    actors: list[Actor]
    sound_events: list[SoundEvent]
    background: CatalogueItem


def clip_uid(split: str, index: int) -> str:
    """The uid of a clip."""
    return f"{split}-{index:05d}"


def is_duet(index: int) -> bool:
    """Whether a clip is a duet: every second one, so that half of the clips of a split are."""
    return index % 2 == 1


def plan_scene(assets: Assets, download: Download, split: str, index: int) -> tuple[Scene, np.random.Generator]:
    """Plan a clip. The returned generator is to be passed to `render_scene`."""
    seed, _, count, _ = composition_of(download)
    generator = np.random.default_rng([seed, SPLITS.index(split), index])
    duet = is_duet(index)
    visible, sounding = _draw_classes(assets, seed, split, index, duet, generator)
    schedule_VT = _draw_schedules(len(sounding), count, min(DUET_SECONDS, count) if duet else 0, generator)

    def pick(role: str, label: int = 0) -> CatalogueItem:
        name = assets.classes[label - 1].name if label else ""
        items = select_items(assets.items, role, split, name)
        return items[generator.integers(len(items))]

    sound_events = []
    for label, on_T in zip(sounding, schedule_VT, strict=True):
        item = pick("sound", label)
        gain_db, speed = generator.uniform(*GAIN_RANGE_DB), generator.uniform(*SPEED_RANGES[split])
        sound_events.append(SoundEvent(label, item, on_T, gain_db, speed, varied=split == "train"))
    cast = [(pick("picture", label), label) for label in visible]
    clutter = min(int(generator.choice(len(NUM_CLUTTER_P), p=NUM_CLUTTER_P)), MAX_ACTORS - len(cast))
    cast += [(pick("clutter"), 0) for _ in range(clutter)]
    generator.shuffle(cast)
    scene = Scene(
        uid=clip_uid(split, index),
        split=split,
        subset="v1s" if len(sounding) == 1 else "v1m",
        actors=_place(cast, assets, count, generator),
        sound_events=sound_events,
        background=pick("background"),
    )
    return scene, generator


def _draw_classes(
    assets: Assets, seed: int, split: str, index: int, duet: bool, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Class ids of the visible objects, the first of which always sounds, and of all sound events.

    In a duet the first two objects are of different classes, and both sound.
    """
    leading, *others, outside = (_deal(assets, seed, split, index, deck) for deck in range(len(NUM_OBJECTS_P) + 1))
    partner = next((label for label in others if label != leading), leading % len(assets.classes) + 1)
    visible = [leading]
    for number in range(max(int(generator.choice(len(NUM_OBJECTS_P), p=NUM_OBJECTS_P)), int(duet))):
        if number == 0 and duet:
            visible.append(partner)
        elif number == 0 and generator.random() < SAME_CLASS_P:
            visible.append(leading)
        elif others[number] not in visible:
            visible.append(others[number])
    sounding = visible[:2] if duet else [leading]
    sounding = sounding + [
        label for label in visible[len(sounding) :] if label != leading and generator.random() >= MUTE_P
    ]
    if generator.random() < OFF_SCREEN_P and outside not in visible:
        sounding.append(outside)
    return visible, sounding


def _deal(assets: Assets, seed: int, split: str, index: int, deck: int) -> int:
    """Deal a class id to a clip from a deck of all classes that is reshuffled when it is used up.

    All classes are dealt equally often.
    """
    turn, position = divmod(index, len(assets.classes))
    shuffled = np.random.default_rng([seed, SPLITS.index(split), turn, deck, len(assets.classes)])
    return int(shuffled.permutation(len(assets.classes))[position]) + 1


def _draw_schedules(num_sounds: int, count: int, together: int, generator: np.random.Generator) -> np.ndarray:
    """On/off schedules, bool [V, T]: each sound at least once, at most `MAX_SIMULTANEOUS_SOUNDS` per second.

    The first two sound together in at least `together` seconds.
    """
    while True:
        on_VT = np.empty((num_sounds, count), dtype=bool)
        on_VT[:, 0] = generator.random(num_sounds) < START_ON_P
        for second in range(1, count):
            keep_V = generator.random(num_sounds) < KEEP_STATE_P
            on_VT[:, second] = on_VT[:, second - 1] == keep_V
        for crowded in np.flatnonzero(on_VT.sum(0) > MAX_SIMULTANEOUS_SOUNDS):
            silenced = generator.permutation(np.flatnonzero(on_VT[:, crowded]))[MAX_SIMULTANEOUS_SOUNDS:]
            on_VT[silenced, crowded] = False
        if on_VT.any(1).all() and (not together or on_VT[:2].all(0).sum() >= together):
            return on_VT


def _place(
    cast: list[tuple[CatalogueItem, int]], assets: Assets, count: int, generator: np.random.Generator
) -> list[Actor]:
    """Draw a path, sizes and angles for each cut-out until no object is mostly hidden behind others."""
    best: tuple[float, list[Actor]] = (np.inf, [])
    for _ in range(_MAX_TRIES):
        actors = [_draw_motion(item, label, assets.pictures[item], count, generator) for item, label in cast]
        covered = _max_covered(actors, [assets.pictures[actor.item] for actor in actors])
        if covered < best[0]:
            best = (covered, actors)
        if covered <= _MAX_COVERED:
            break
    return best[1]


def _draw_motion(
    item: CatalogueItem, label: int, picture: Image.Image, count: int, generator: np.random.Generator
) -> Actor:
    width, height = picture.size
    stretch = max(width, height) / np.sqrt(width * height)
    first = generator.uniform(*_SQRT_AREA_RANGE) * stretch
    side_T = np.clip(np.linspace(first, first * generator.uniform(0.8, 1.25), count), *SIDE_RANGE)
    center_T2 = np.linspace(generator.uniform(0.15, 0.85, 2), generator.uniform(0.15, 0.85, 2), count)
    center_T2 += generator.normal(0, 0.02, (count, 2))
    margin_T2 = 0.35 * side_T[:, None] * np.array([width, height]) / max(width, height)
    angle = generator.uniform(-12, 12)
    angle_T = np.linspace(angle, angle + generator.uniform(-10, 10), count)
    flip = bool(generator.random() < 0.5)
    return Actor(item, label, np.clip(center_T2, margin_T2, 1 - margin_T2), side_T, angle_T, flip)


def _max_covered(actors: list[Actor], pictures: list[Image.Image]) -> float:
    """The largest fraction of an object's box, over objects and seconds, that boxes in front of it may hide."""
    if not actors:
        return 0.0
    shape_A2 = np.array([picture.size for picture in pictures]) / np.array([[max(p.size)] for p in pictures])
    side_AT2 = np.stack([actor.side_T for actor in actors])[:, :, None] * shape_A2[:, None]
    center_AT2 = np.stack([actor.center_T2 for actor in actors])
    low, high = center_AT2 - side_AT2 / 2, center_AT2 + side_AT2 / 2
    worst = 0.0
    for back, actor in enumerate(actors):
        if actor.label:
            shared_AT2 = np.minimum(high[back], high[back + 1 :]) - np.maximum(low[back], low[back + 1 :])
            hidden_T = np.clip(shared_AT2, 0, None).prod(-1).sum(0) / side_AT2[back].prod(-1)
            worst = max(worst, float(hidden_T.max(initial=0.0)))
    return worst
