"""Compose the catalogue's cut-outs and sounds into clips whose sounding pixels are known exactly.

A clip is planned first and then rendered, both from a generator of its own, seeded by
(`seed`, split, index): the same settings give the same bytes, however many processes compose.

The rules of a scene:

* One to three objects move over a photo, with up to two silent cut-outs of no class as clutter.
  Objects overlap; label maps follow the order in which they lie (alpha 0.5 is the border).
* Every sounding class has its own on/off schedule by the second; at most two sound at once. Some
  visible objects are mute throughout, and some sounds come from outside the frame.
* Only what is visible and sounds in that second is labeled.
* Where two objects of one class are visible and the class sounds, both are labeled: no listener
  could tell which of them it is.
* Subset `v1s` holds the clips in which one class sounds, `v1m` those with several.

Shapes: T frames (one a second), H W pixels, side S of the square frame.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from qdformer.audio.io.sound_table import sound_row, write_single_sound, write_sound_table
from qdformer.config.download import Download
from qdformer.data.layout import ClassInfo, metadata_row, write_clip, write_metadata
from qdformer.data.readers.stamps.catalogue import CatalogueItem, catalogue_classes, read_catalogue, select_items
from qdformer.data.readers.stamps.fetch import Source, fetch
from qdformer.data.readers.stamps.sounds import normalize_noise, normalize_recording, read_sound, render_sound_event
from qdformer.utils.constants import SAMPLE_RATE, SPLITS

OBJECTS = (0.3, 0.4, 0.3)  # chance of one, two, three visible objects
CLUTTER = (0.45, 0.35, 0.2)  # chance of no, one, two silent things of no class
MAX_ACTORS = 4
TWIN = 0.15  # chance that the second object is of the first one's class
MUTE = 0.4  # chance that an object beside the first is mute throughout
OFF_SCREEN = 0.2  # chance of a sound from outside the frame
START_ON, STAY = 0.6, 0.6  # a schedule's first second; keeping its state from one to the next
MAX_SIMULTANEOUS_SOUNDS = 2
SIDE_RANGE = (0.15, 0.6)  # an object's longer side, of the frame's
_AREA_SIDE = (0.32, 0.58)  # square root of its box's area, of the frame's side, before the limits above
_STORED_SIDE = 320  # pictures are held no larger than this
_COVERED = 0.4  # an object's box lies under others by no more than this, where the tries find such a place
_TRIES = 20


@dataclass(frozen=True)
class Assets:
    """The catalogue's files, read: RGBA cut-outs, RGB photos, recordings, each under its item."""

    items: list[CatalogueItem]
    classes: list[ClassInfo]
    pictures: Mapping[CatalogueItem, Image.Image]
    sounds: Mapping[CatalogueItem, np.ndarray]


@dataclass(frozen=True)
class Actor:
    """A cut-out in a scene; `label` is its class id, 0 for clutter. Lists of actors run from back to front."""

    item: CatalogueItem
    label: int
    center_T2: np.ndarray
    side_T: np.ndarray
    angle_T: np.ndarray
    flip: bool


@dataclass(frozen=True)
class SoundEvent:
    """A sound in a scene: class id, recording, the seconds in which it sounds, gain in dB and speed."""

    label: int
    item: CatalogueItem
    on_T: np.ndarray
    gain_db: float
    speed: float


@dataclass(frozen=True)
class Scene:
    """All that is decided about a clip before anything is drawn."""

    uid: str
    split: str
    subset: str
    actors: list[Actor]
    sound_events: list[SoundEvent]
    background: CatalogueItem


def compose_stamps(
    root_dataset: str | Path, root_sounds: str | Path, download: Download, cache: str | Path, progress: bool = True
) -> None:
    """Fetch what the catalogue names and compose the data set and the folder of single sounds.

    Both tables are written last, so that an interrupted call leaves nothing that could be taken
    for a whole data set. Raises `FetchError` if a file cannot be had.
    """
    items = read_catalogue()
    paths = fetch((item.source for item in items), Path(cache), progress)
    assets = load_assets(items, paths)
    write_sounds(Path(root_sounds), assets)
    write_scenes(Path(root_dataset), assets, download, progress)


def load_assets(items: list[CatalogueItem], paths: Mapping[Source, Path]) -> Assets:
    """Read every picture and sound of the catalogue."""
    pictures: dict[CatalogueItem, Image.Image] = {}
    sounds: dict[CatalogueItem, np.ndarray] = {}
    for item in items:
        path = paths[item.source]
        if item.role in ("picture", "clutter"):
            pictures[item] = _read_cutout(path)
        elif item.role == "background":
            pictures[item] = _read_photo(path)
        else:
            tidy = normalize_recording if item.role == "sound" else normalize_noise
            sounds[item] = tidy(read_sound(path, item.start, item.end))
    return Assets(items, catalogue_classes(items), pictures, sounds)


def write_sounds(root: Path, assets: Assets) -> None:
    """Write every recording and every noise of the catalogue, and the table that says what is for which split."""
    rows = []
    for number, (item, audio) in enumerate(assets.sounds.items()):
        role = "source" if item.role == "sound" else "noise"
        path = f"{role}/{item.split}/{number:03d}{'-' if item.name else ''}{item.name}.flac"
        write_single_sound(root, path, audio)
        for split in SPLITS if item.split == "all" else (item.split,):
            rows.append(sound_row(path, role=role, split=split, label=item.name))
    write_sound_table(root, rows)


def write_scenes(root: Path, assets: Assets, download: Download, progress: bool = True) -> None:
    """Compose every clip of every split, on all processors, then write the metadata."""
    jobs = [(split, index) for split in SPLITS for index in range(getattr(download.clips, split))]
    rows = {}
    # forked, so that the processes share the pictures and sounds that are in memory
    with multiprocessing.get_context("fork").Pool(
        os.cpu_count(), initializer=_start_worker, initargs=(root, assets, download)
    ) as pool:
        clips = pool.imap_unordered(_compose_job, jobs, chunksize=4)
        for row in tqdm(
            clips, total=len(jobs), desc="compose", unit="clip", disable=None if progress else True, leave=False
        ):
            rows[row["uid"]] = row
    order = [_uid(split, index) for split, index in jobs]
    write_metadata(root, [rows[uid] for uid in order], assets.classes)


def plan_scene(assets: Assets, download: Download, split: str, index: int) -> tuple[Scene, np.random.Generator]:
    """Decide on a clip; the generator is to render it with."""
    generator = np.random.default_rng([download.seed, SPLITS.index(split), index])
    count = download.frames
    visible, heard = _cast_classes(assets, download, split, index, generator)
    schedule_VT = _schedule(len(heard), count, generator)

    sound_events = []
    for label, on_T in zip(heard, schedule_VT, strict=True):
        item = _pick(select_items(assets.items, "sound", split, assets.classes[label - 1].name), generator)
        sound_events.append(SoundEvent(label, item, on_T, generator.uniform(-6, 0), generator.uniform(0.93, 1.07)))
    cast = [
        (_pick(select_items(assets.items, "picture", split, assets.classes[i - 1].name), generator), i) for i in visible
    ]
    clutter = min(int(generator.choice(len(CLUTTER), p=CLUTTER)), MAX_ACTORS - len(cast))
    cast += [(_pick(select_items(assets.items, "clutter", split), generator), 0) for _ in range(clutter)]
    generator.shuffle(cast)
    scene = Scene(
        uid=_uid(split, index),
        split=split,
        subset="v1s" if len(heard) == 1 else "v1m",
        actors=_place(cast, assets, count, generator),
        sound_events=sound_events,
        background=_pick(select_items(assets.items, "background", split), generator),
    )
    return scene, generator


def render_scene(
    scene: Scene, assets: Assets, download: Download, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw and mix a scene: frames uint8 [T, S, S, 3], label maps uint8 [T, S, S], audio float32 [samples]."""
    size, count = download.image_size, download.frames
    sprites = [_recoloured(assets.pictures[actor.item], generator) for actor in scene.actors]
    backgrounds_TSS3 = _pan(assets.pictures[scene.background], size, count, generator)
    gain, blur, noise = generator.uniform(0.8, 1.15), generator.uniform(0, 0.7), generator.uniform(0, 5)
    sounding_T = [{voice.label for voice in scene.sound_events if voice.on_T[second]} for second in range(count)]

    frames_TSS3 = np.empty((count, size, size, 3), dtype=np.uint8)
    labels_TSS = np.zeros((count, size, size), dtype=np.uint8)
    for second in range(count):
        picture = backgrounds_TSS3[second].astype(np.float32)
        for actor, sprite in zip(scene.actors, sprites, strict=True):
            alpha, colour, (rows, columns) = _pose(sprite, actor, second, size)
            picture[rows, columns] += alpha[..., None] * (colour - picture[rows, columns])
            label = actor.label if actor.label in sounding_T[second] else 0
            labels_TSS[second, rows, columns][alpha > 0.5] = label
        lit = Image.fromarray(np.clip(picture * gain, 0, 255).astype(np.uint8))
        blurred = lit.filter(ImageFilter.GaussianBlur(blur))
        grain = generator.normal(0, noise, (size, size, 1))
        frames_TSS3[second] = np.clip(np.asarray(blurred) + grain, 0, 255).round()

    audio = np.zeros(count * SAMPLE_RATE, dtype=np.float32)
    for voice in scene.sound_events:
        audio += 10 ** (voice.gain_db / 20) * render_sound_event(
            assets.sounds[voice.item], voice.on_T, voice.speed, generator
        )
    return frames_TSS3, labels_TSS, audio / max(1.0, float(np.abs(audio).max()))


def _cast_classes(
    assets: Assets, download: Download, split: str, index: int, generator: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Class ids of the visible objects, of which the first is sure to sound, and of all that sounds."""
    leading, *others, outside = (_deal(assets, download, split, index, deck) for deck in range(len(OBJECTS) + 1))
    visible = [leading]
    for number, label in enumerate(others[: generator.choice(len(OBJECTS), p=OBJECTS)]):
        if number == 0 and generator.random() < TWIN:
            visible.append(leading)
        elif label not in visible:
            visible.append(label)
    heard = [leading, *(label for label in visible[1:] if label != leading and generator.random() >= MUTE)]
    if generator.random() < OFF_SCREEN and outside not in visible:
        heard.append(outside)
    return visible, heard


def _deal(assets: Assets, download: Download, split: str, index: int, deck: int) -> int:
    """The class that a deck of all classes, shuffled whenever it is used up, deals to a clip: all equally often."""
    turn, place = divmod(index, len(assets.classes))
    shuffled = np.random.default_rng([download.seed, SPLITS.index(split), turn, deck, len(assets.classes)])
    return int(shuffled.permutation(len(assets.classes))[place]) + 1


def _schedule(sound_events: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """On/off schedules, bool [V, T]: each sound at least once, at most `MAX_SIMULTANEOUS_SOUNDS` per second."""
    while True:
        on_VT = np.empty((sound_events, count), dtype=bool)
        on_VT[:, 0] = generator.random(sound_events) < START_ON
        for second in range(1, count):
            stay = generator.random(sound_events) < STAY
            on_VT[:, second] = on_VT[:, second - 1] == stay
        for second in np.flatnonzero(on_VT.sum(0) > MAX_SIMULTANEOUS_SOUNDS):
            silenced = generator.permutation(np.flatnonzero(on_VT[:, second]))[MAX_SIMULTANEOUS_SOUNDS:]
            on_VT[silenced, second] = False
        if on_VT.any(1).all():
            return on_VT


def _place(
    cast: list[tuple[CatalogueItem, int]], assets: Assets, count: int, generator: np.random.Generator
) -> list[Actor]:
    """Give each cut-out a path, sizes and angles such that those in front leave most of it to be seen."""
    best: tuple[float, list[Actor]] = (np.inf, [])
    for _ in range(_TRIES):
        actors = [_wander(item, label, assets.pictures[item], count, generator) for item, label in cast]
        covered = _most_covered(actors, [assets.pictures[actor.item] for actor in actors])
        if covered < best[0]:
            best = (covered, actors)
        if covered <= _COVERED:
            break
    return best[1]


def _wander(item: CatalogueItem, label: int, picture: Image.Image, count: int, generator: np.random.Generator) -> Actor:
    width, height = picture.size
    stretch = max(width, height) / np.sqrt(width * height)
    first = generator.uniform(*_AREA_SIDE) * stretch
    side_T = np.clip(np.linspace(first, first * generator.uniform(0.8, 1.25), count), *SIDE_RANGE)
    center_T2 = np.linspace(generator.uniform(0.15, 0.85, 2), generator.uniform(0.15, 0.85, 2), count)
    center_T2 += generator.normal(0, 0.02, (count, 2))
    margin_T2 = 0.35 * side_T[:, None] * np.array([width, height]) / max(width, height)
    angle = generator.uniform(-12, 12)
    angle_T = np.linspace(angle, angle + generator.uniform(-10, 10), count)
    flip = bool(generator.random() < 0.5)
    return Actor(item, label, np.clip(center_T2, margin_T2, 1 - margin_T2), side_T, angle_T, flip)


def _most_covered(actors: list[Actor], pictures: list[Image.Image]) -> float:
    """The largest part of a class's object, over all seconds, that boxes in front of it may hide."""
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


def _pose(
    sprite: Image.Image, actor: Actor, second: int, size: int
) -> tuple[np.ndarray, np.ndarray, tuple[slice, slice]]:
    """Alpha [h, w] and colour [h, w, 3] of a cut-out in a second, and the pixels of the frame they go to."""
    scale = actor.side_T[second] * size / max(sprite.size)
    shape = tuple(max(2, round(length * scale)) for length in sprite.size)
    posed = sprite.resize(shape, Image.Resampling.LANCZOS)
    if actor.flip:
        posed = posed.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    posed = posed.rotate(actor.angle_T[second], Image.Resampling.BICUBIC, expand=True)
    left, top = (np.round(actor.center_T2[second] * size) - np.array(posed.size) // 2).astype(int)
    inside_x, inside_y = max(0, -left), max(0, -top)
    pixels = np.asarray(posed, dtype=np.float32)[inside_y : size - top, inside_x : size - left]
    top, left = max(0, top), max(0, left)
    area = slice(top, top + pixels.shape[0]), slice(left, left + pixels.shape[1])
    return pixels[..., 3] / 255, pixels[..., :3], area


def _pan(photo: Image.Image, size: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """A slow move over a photo, mirrored or not: uint8 [T, S, S, 3]."""
    if generator.random() < 0.5:
        photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    side = generator.uniform(0.55, 0.95) * min(photo.size)
    side_T = side * np.linspace(1, generator.uniform(0.93, 1.05), count)
    room_2 = np.array(photo.size) - side_T.max()
    first_2 = generator.uniform(0, 1, 2)
    last_2 = np.clip(first_2 + generator.uniform(-0.25, 0.25, 2), 0, 1)
    frames = []
    for left, top, length in zip(*(np.linspace(first_2, last_2, count) * room_2).T, side_T, strict=True):
        box = (left, top, left + length, top + length)
        frames.append(np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box)))
    return np.stack(frames)


def _recoloured(sprite: Image.Image, generator: np.random.Generator) -> Image.Image:
    """A cut-out with its brightness, contrast, saturation and tint shifted a little."""
    pixels = np.asarray(sprite, dtype=np.float32)
    colour, weight = pixels[..., :3], pixels[..., 3:] / 255
    mean = (colour * weight).sum((0, 1)) / weight.sum()
    grey = colour.mean(-1, keepdims=True)
    colour = grey + generator.uniform(0.7, 1.3) * (colour - grey)
    colour = mean + generator.uniform(0.85, 1.15) * (colour - mean)
    colour = colour * generator.uniform(0.8, 1.2) * generator.uniform(0.94, 1.06, 3)
    shifted = np.concatenate([np.clip(colour, 0, 255), pixels[..., 3:]], axis=-1)
    return Image.fromarray(shifted.astype(np.uint8), "RGBA")


def _read_cutout(path: Path) -> Image.Image:
    with Image.open(path) as image:
        cutout = image.convert("RGBA")
    solid = cutout.getchannel("A").point(lambda alpha: 255 if alpha > 127 else 0)
    cutout = cutout.crop(solid.getbbox())
    cutout.thumbnail((_STORED_SIDE, _STORED_SIDE), Image.Resampling.LANCZOS)
    return cutout


def _read_photo(path: Path) -> Image.Image:
    with Image.open(path) as image:
        photo = image.convert("RGB")
    scale = min(1.0, _STORED_SIDE / min(photo.size))
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)


def _pick(items: list[CatalogueItem], generator: np.random.Generator) -> CatalogueItem:
    return items[generator.integers(len(items))]


def _uid(split: str, index: int) -> str:
    return f"{split}-{index:05d}"


_worker: tuple[Path, Assets, Download]


def _start_worker(root: Path, assets: Assets, download: Download) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends the workers
    _worker = (root, assets, download)


def _compose_job(job: tuple[str, int]) -> dict[str, str | int]:
    root, assets, download = _worker
    scene, generator = plan_scene(assets, download, *job)
    frames_TSS3, labels_TSS, audio = render_scene(scene, assets, download, generator)
    write_clip(root, scene.subset, scene.uid, frames_TSS3, labels_TSS, audio)
    labeled = [assets.classes[label - 1] for label in np.unique(labels_TSS) if label]
    visible = {actor.label for actor in scene.actors}
    return metadata_row(
        scene.uid,
        subset=scene.subset,
        split=scene.split,
        classes=[info.name for info in labeled],
        frames=download.frames,
        off_screen=any(voice.label not in visible for voice in scene.sound_events),
        unseen=all(info.unseen for info in labeled),
    )
