"""Reads the pictures and sounds of the catalogue into memory."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from qdformer.data.layout import ClassInfo
from qdformer.data.readers.stamps.catalogue import CatalogueItem, catalogue_classes, read_outlines
from qdformer.data.readers.stamps.fetch import Source
from qdformer.data.readers.stamps.melodies import play
from qdformer.data.readers.stamps.soundfont import open_soundfont
from qdformer.data.readers.stamps.sounds import normalize_noise, normalize_recording, read_sound

_MAX_STORED_SIDE = 320  # pixels
_OVERSAMPLING = 4  # of the masks of outlines


@dataclass(frozen=True)
class Assets:
    """The files of the catalogue, decoded: RGBA cut-outs, RGB photos and recordings, each under its item."""

    items: list[CatalogueItem]
    classes: list[ClassInfo]
    pictures: Mapping[CatalogueItem, Image.Image]
    sounds: Mapping[CatalogueItem, np.ndarray]


def load_assets(items: list[CatalogueItem], paths: Mapping[Source, Path]) -> Assets:
    """Read every picture and sound of the catalogue."""
    pictures: dict[CatalogueItem, Image.Image] = {}
    sounds: dict[CatalogueItem, np.ndarray] = {}
    outlines = read_outlines()
    for item in items:
        path = paths[item.source]
        if item.role in ("picture", "clutter"):
            pictures[item] = read_cutout(path, outlines.get(item.source.sha256))
        elif item.role == "background":
            pictures[item] = read_photo(path)
        elif item.role == "noise":
            sounds[item] = normalize_noise(read_sound(path, item.start, item.end))
        elif not item.instrument:
            sounds[item] = normalize_recording(read_sound(path, item.start, item.end))
    sounds.update(_play_melodies([(item, paths[item.source]) for item in items if item.instrument]))
    return Assets(items, catalogue_classes(items), pictures, sounds)


def _play_melodies(jobs: list[tuple[CatalogueItem, Path]]) -> dict[CatalogueItem, np.ndarray]:
    """The melodies of the catalogue, played on all processors."""
    if not jobs:
        return {}
    for path in {path for _, path in jobs}:
        open_soundfont(path)  # before the processes are forked, which then share it
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return dict(zip((item for item, _ in jobs), pool.map(_play_melody, jobs, chunksize=2), strict=True))


def _play_melody(job: tuple[CatalogueItem, Path]) -> np.ndarray:
    item, path = job
    return normalize_recording(play(open_soundfont(path), item.instrument, item.split, item.take))


def read_cutout(path: Path, outline: list[tuple[float, float]] | None = None) -> Image.Image:
    """Read a cut-out as RGBA, cropped to its opaque part and scaled down to at most 320 pixels a side.

    `outline` is the polygon that cuts an object out of a photo, as fractions of its width and height.
    """
    with Image.open(path) as image:
        cutout = image.convert("RGBA")
    if outline:
        cutout.putalpha(_draw_polygon(outline, cutout.size))
    solid = cutout.getchannel("A").point(lambda alpha: 255 if alpha > 127 else 0)
    cutout = cutout.crop(solid.getbbox())
    cutout.thumbnail((_MAX_STORED_SIDE, _MAX_STORED_SIDE), Image.Resampling.LANCZOS)
    return cutout


def _draw_polygon(outline: list[tuple[float, float]], size: tuple[int, int]) -> Image.Image:
    """The mask of a polygon, with a soft edge."""
    width, height = (_OVERSAMPLING * length for length in size)
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).polygon([(x * width, y * height) for x, y in outline], fill=255)
    return mask.resize(size, Image.Resampling.BOX)


def read_photo(path: Path) -> Image.Image:
    """Read a photo as RGB, its shorter side scaled down to at most 320 pixels."""
    with Image.open(path) as image:
        photo = image.convert("RGB")
    scale = min(1.0, _MAX_STORED_SIDE / min(photo.size))
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
