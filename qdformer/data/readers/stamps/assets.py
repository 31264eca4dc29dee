"""Reads the pictures and sounds of the catalogue into memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from qdformer.data.layout import ClassInfo
from qdformer.data.readers.stamps.catalogue import CatalogueItem, catalogue_classes
from qdformer.data.readers.stamps.fetch import Source
from qdformer.data.readers.stamps.sounds import normalize_noise, normalize_recording, read_sound

_MAX_STORED_SIDE = 320  # pixels


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
    for item in items:
        path = paths[item.source]
        if item.role in ("picture", "clutter"):
            pictures[item] = read_cutout(path)
        elif item.role == "background":
            pictures[item] = read_photo(path)
        else:
            normalize = normalize_recording if item.role == "sound" else normalize_noise
            sounds[item] = normalize(read_sound(path, item.start, item.end))
    return Assets(items, catalogue_classes(items), pictures, sounds)


def read_cutout(path: Path) -> Image.Image:
    """Read a cut-out as RGBA, cropped to its opaque part and scaled down to at most 320 pixels a side."""
    with Image.open(path) as image:
        cutout = image.convert("RGBA")
    solid = cutout.getchannel("A").point(lambda alpha: 255 if alpha > 127 else 0)
    cutout = cutout.crop(solid.getbbox())
    cutout.thumbnail((_MAX_STORED_SIDE, _MAX_STORED_SIDE), Image.Resampling.LANCZOS)
    return cutout


def read_photo(path: Path) -> Image.Image:
    """Read a photo as RGB, its shorter side scaled down to at most 320 pixels."""
    with Image.open(path) as image:
        photo = image.convert("RGB")
    scale = min(1.0, _MAX_STORED_SIDE / min(photo.size))
    return photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.Resampling.LANCZOS)
