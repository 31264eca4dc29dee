"""A small AudioSet: an ontology with real ids, a segment list, and clips by YouTube id."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

ANIMAL, DOG, BARK, CAT = "/m/0jbk", "/m/0bt9lr", "/m/05tny_", "/m/01yrx"
NATURAL, WIND, LEAVES, RAIN = "/m/059j3w", "/m/03m9d0z", "/m/09t49", "/m/06mb1"
TREE = {
    ANIMAL: ("Animal", [DOG, CAT]),
    DOG: ("Dog", [BARK]),
    BARK: ("Bark", []),
    CAT: ("Cat", []),
    NATURAL: ("Natural sounds", [WIND, RAIN]),
    WIND: ("Wind", [LEAVES]),
    LEAVES: ("Rustling leaves", []),
    RAIN: ("Rain", []),
}
HEADER = """\
# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=4, num_segs=4, num_unique_labels=4, num_positive_labels=6
# YTID, start_seconds, end_seconds, positive_labels
"""


def write_ontology(path: Path, tree: dict[str, tuple[str, list[str]]] = TREE) -> Path:
    entries = [{"id": mid, "name": name, "child_ids": children} for mid, (name, children) in tree.items()]
    path.write_text(json.dumps(entries), encoding="utf-8")
    return path


def write_list(path: Path, segments: list[tuple[str, float, list[str]]]) -> Path:
    """A list of 10 s segments, given as (id, start, labels), in the published format."""
    lines = [f'{name}, {start:.3f}, {start + 10:.3f}, "{",".join(mids)}"\n' for name, start, mids in segments]
    path.write_text(HEADER + "".join(lines), encoding="utf-8")
    return path


def youtube_id(number: int) -> str:
    return f"-id_{number:07d}"


def write_tone(path: Path, seconds: float = 10.0, rate: int = 16000, channels: int = 1, level: float = 0.1) -> Path:
    """Write a tone that gets louder every second, so that each cut is different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    wave = level * np.sin(2 * np.pi * 300 * time) * (1 + np.floor(time)) / (1 + seconds)
    soundfile.write(path, np.repeat(wave[:, None], channels, axis=1), rate)
    return path
