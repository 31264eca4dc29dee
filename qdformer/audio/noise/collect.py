"""Collect the background noises of a run, from the data set's own sounds or from AudioSet, into one folder.

    {folder}/noise.csv   one row per recording and split: path, split, source, labels, youtube_id, start

Noises from AudioSet are 16 kHz mono FLAC files of 16 bits with a peak of `NOISE_PEAK`; their level is set when they are
mixed. Noises of the data set are copied unchanged.
"""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas
from tqdm import tqdm

from qdformer.audio.io.level import SILENCE_RMS, rms
from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.io.write import quantize, write_audio
from qdformer.audio.noise.audioset import (
    AudioSetError,
    Ontology,
    Segment,
    assign_split,
    find_clip_file,
    index_clip_files,
    labels_of_classes,
    select_segments,
)
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.files import write_text
from qdformer.utils.tables import read_table

if TYPE_CHECKING:
    from qdformer.config.noise import Noise

NOISE_COLUMNS = ("path", "split", "source", "labels", "youtube_id", "start")
NOISE_PEAK = 0.9
_REPORTED = ("picked", "found", "fetched", "unavailable", "failed", "missing", "unreadable", "silent")
_LENGTH_TOLERANCE = 1.0  # seconds; a file longer than its segment by more than this is the whole video


def copy_dataset_noises(folder: str | Path, sounds_root: str | Path, sounds: pandas.DataFrame) -> pandas.DataFrame:
    """Copy the noises of a data set to `folder`, with the same names and in the same order.

    `sounds` is the result of `qdformer.audio.io.sound_table.read_sound_table(sounds_root)`. Returns the table written
    to `noise.csv`.

    Raises:
        AudioError: the data set has no noises.
    """
    folder = Path(folder)
    rows = []
    for sound in sounds[sounds["role"] == "noise"].itertuples():
        path = sound.path.relative_to(sounds_root)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sound.path, folder / path)
        rows.append({"path": path.as_posix(), "split": sound.split, "source": "dataset"})
    if not rows:
        raise AudioError(
            f"{Path(sounds_root) / 'sounds.csv'}: no sound with the role noise; noise.source: audioset needs none"
        )
    return _write_table(folder, rows)


def write_empty_noise_table(folder: str | Path) -> pandas.DataFrame:
    """Write and return an empty `noise.csv`, for runs without noisy conditions."""
    return _write_table(Path(folder), [])


def collect_audioset_noises(
    folder: str | Path, settings: Noise, classes: Iterable[str], cache: str | Path
) -> pandas.DataFrame:
    """Write `settings.count` noises from AudioSet per split to `folder`, none of them with a label of `classes`.

    Segments are taken in an order that depends on the seed: from the user's folder, from the cache of fetched segments,
    or from YouTube. A segment that is not available or not usable is skipped. All segments of one video belong to one
    split. The counts are printed. Returns the table written to `noise.csv`.

    Raises:
        AudioSetError: a file of AudioSet is not usable, or a split gets fewer than `settings.minimum` noises.
        FetchError: see `qdformer.audio.noise.audioset_fetch`.
    """
    from qdformer.audio.noise.audioset_fetch import Fetcher

    assert settings.ontology is not None  # the settings check it
    ontology = Ontology(settings.ontology)
    wanted = ontology.with_descendants(ontology.resolve_ids(settings.labels))
    excluded = labels_of_classes(classes, ontology)
    index = index_clip_files(settings.folder) if settings.folder else {}
    fetcher = Fetcher(cache)
    candidates = select_segments(settings.segments, wanted, excluded, settings.seed)
    rows, problems = [], []
    for split, count in settings.count.items():
        tally: Counter[str] = Counter()
        eligible = [
            item for item in candidates if assign_split(item.youtube_id, settings.count, settings.seed) == split
        ]
        with tqdm(total=count, desc=f"noise {split}", unit="clip", disable=None) as bar:
            for segment in eligible:
                if tally["usable"] == count:
                    break
                tally["picked"] += 1
                path, outcome = find_clip_file(index, segment) or fetcher.cached(segment), "found"
                if path is None:
                    path, outcome = fetcher.fetch(segment) if settings.fetch else (None, "missing")
                tally[outcome] += 1
                row = None if path is None else _convert(path, segment, split, Path(folder), tally)
                if row is not None:
                    rows.append(row | {"labels": ";".join(ontology.names.get(mid, mid) for mid in segment.labels)})
                    tally["usable"] += 1
                    bar.update()
        counts = ", ".join(f"{name} {tally[name]}" for name in _REPORTED)
        print(f"noise {split}: {tally['usable']} usable of {count} wanted, {len(eligible)} eligible: {counts}")
        if tally["usable"] < settings.minimum:
            problems.append(
                f"{split}: {tally['usable']} usable noises, expected at least {settings.minimum} (noise.minimum); "
                f"of {len(eligible)} eligible segments: {counts}"
            )
    if problems:
        raise AudioSetError("\n  ".join(["too few noises from AudioSet", *problems]))
    return _write_table(Path(folder), rows)


def read_noise_table(folder: str | Path) -> pandas.DataFrame:
    """Read `noise.csv`; one row per noise and split, in the file's order, with `path` as a Path.

    Raises:
        AudioError: the table is missing, damaged or lacks a column.
    """
    table = read_table(Path(folder) / "noise.csv", NOISE_COLUMNS, AudioError, writer="noise")
    return table.assign(path=[Path(folder) / value for value in table["path"]])


def _convert(path: Path, segment: Segment, split: str, folder: Path, tally: Counter[str]) -> dict | None:
    """Write the noise of a segment and return its row; if the file is not usable, print the reason and return None."""
    try:
        audio = _cut(read_audio(path), segment, path)
    except AudioError as error:
        tally["unreadable"] += 1
        tqdm.write(f"noise skipped: {error}", file=sys.stderr)
        return None
    if rms(audio) <= SILENCE_RMS:
        tally["silent"] += 1
        tqdm.write(f"noise skipped: {path}: is silent", file=sys.stderr)
        return None
    name = f"{split}/{segment.name}.flac"
    (folder / split).mkdir(parents=True, exist_ok=True)
    write_audio(folder / name, quantize(audio * (NOISE_PEAK / np.abs(audio).max()), 16))
    return {
        "path": name,
        "split": split,
        "source": "audioset",
        "youtube_id": segment.youtube_id,
        "start": f"{segment.start:g}",
    }


def _cut(audio: np.ndarray, segment: Segment, path: Path) -> np.ndarray:
    """Cut the segment from the audio of a whole video; a file of about the segment's length is returned whole."""
    if len(audio) <= (segment.end - segment.start + _LENGTH_TOLERANCE) * SAMPLE_RATE:
        return audio
    part = audio[round(segment.start * SAMPLE_RATE) : round(segment.end * SAMPLE_RATE)]
    if not len(part):
        raise AudioError(f"{path}: {len(audio) / SAMPLE_RATE:.1f} s long; its segment starts at {segment.start:g} s")
    return part


def _write_table(folder: Path, rows: list[dict]) -> pandas.DataFrame:
    table = pandas.DataFrame(rows, columns=list(NOISE_COLUMNS))
    write_text(folder / "noise.csv", table.to_csv(index=False, lineterminator="\n"))
    return table
