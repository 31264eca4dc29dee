"""Sounds of nothing in the picture, for the clips of a test set: the negatives of AVSBench-Robust beside silence.

Both are VGGish's features of real sounds. They depend on the seed and the clip alone, but for the choice there is.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas
from tqdm import tqdm

from qdformer.audio.features.extract import CLIPS_PER_CHUNK, Embedder
from qdformer.audio.io.read import read_audio
from qdformer.audio.noise.mixing import SILENT_CLIP_REFERENCE_RMS, rms, select_noise
from qdformer.data.layout import DataError
from qdformer.utils.constants import SAMPLE_RATE

_RECORDINGS_KEPT = 64


class Shuffled(Mapping):
    """Control: every clip hears another clip's features, none its own.

    `frames` tells how many frames each clip has. The pairs are a random ring through the clips of each
    length, so each clip's sound is used once, whole. The two clips of a pair share nothing but what
    chance gives them, the same class at times.
    """

    def __init__(self, features: Mapping[str, np.ndarray], frames: Mapping[str, int], seed: int) -> None:
        self.features = features
        self.source: dict[str, str] = {}
        for length in sorted(set(frames.values())):
            uids = [uid for uid, own in frames.items() if own == length]
            if len(uids) < 2:
                raise DataError(f"{len(uids)} clip of {length} frames to shuffle audio between; expected at least 2")
            ring = [uids[index] for index in np.random.default_rng(seed).permutation(len(uids))]
            self.source |= dict(zip(ring, ring[1:] + ring[:1], strict=True))

    def __getitem__(self, uid: str) -> np.ndarray:
        return self.features[self.source[uid]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


class Constant(Mapping):
    """Control: every clip of `frames`, for as many frames as it tells, hears `features_A` [A], those of silence say."""

    def __init__(self, features_A: np.ndarray, frames: Mapping[str, int]) -> None:
        self.features_A = features_A
        self.frames = frames

    def __getitem__(self, uid: str) -> np.ndarray:
        return np.repeat(self.features_A[None], self.frames[uid], axis=0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)


class OffScreen(Mapping):
    """Every clip hears another one, of which nothing that sounds is in its picture.

    That is a clip whose sounding classes are all named (none out of its own picture) and others than all of this
    clip's; one of this clip's split where there is such, as in AVSBench-Robust, else of any. Its first seconds are
    heard; a shorter one is heard again. `pool` holds the clips that may be heard, each of which has `features`; it
    and `clips` have the columns uid, split, classes, silent, off_screen and frames of the manifest. Raises
    `DataError`, naming the clip, where none can be heard.
    """

    def __init__(
        self, features: Mapping[str, np.ndarray], clips: pandas.DataFrame, pool: pandas.DataFrame, seed: int
    ) -> None:
        self.features = features
        self.frames = dict(zip(clips["uid"], clips["frames"], strict=True))
        sounding = [row for row in pool.itertuples() if row.classes and not row.silent and not row.off_screen]
        self.source: dict[str, str] = {}
        for clip in clips.itertuples():
            others = [row for row in sounding if not {*row.classes} & {*clip.classes}]
            others = [row for row in others if row.split == clip.split] or others
            if not others:
                raise DataError(
                    f"clip {clip.uid}: all other clips' sounds are of a class that it shows, or not named; "
                    "expected one of other classes (or leave offscreen out of evaluate.controls)"
                )
            self.source[clip.uid] = min(others, key=lambda row, uid=clip.uid: _draw(seed, uid, row.uid)).uid

    def __getitem__(self, uid: str) -> np.ndarray:
        heard = self.features[self.source[uid]]
        return np.resize(heard, (self.frames[uid], heard.shape[1]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def noise_features(
    clips: pandas.DataFrame, noises: pandas.DataFrame, embedder: Embedder, seed: int
) -> dict[str, np.ndarray]:
    """What background noise alone gives for each clip: [T, 128] float32 by uid.

    It is the noise that the stage mix lays under the clip with this `seed`, of the clip's split; where the data set
    has no noises at all, white noise, as in AVSBench-Robust. Its RMS is `SILENT_CLIP_REFERENCE_RMS`, which mixing takes
    for that of a silent clip. `clips` has uid, split and frames of the manifest; `noises` is
    `qdformer.audio.noise.collect.read_noise_table`.

    Raises:
        AudioError: a noise cannot be read or is silent, or the clip's split has none where others have.
    """
    read = functools.lru_cache(maxsize=_RECORDINGS_KEPT)(read_audio)
    pools: dict[str, list[Path]] = {
        split: noises.loc[noises["split"] == split, "path"].tolist() for split in set(clips["split"])
    }
    results: dict[str, np.ndarray] = {}
    rows = list(clips.itertuples())
    with tqdm(total=len(rows), desc="features of noise", unit="clip", disable=None) as bar:
        for start in range(0, len(rows), CLIPS_PER_CHUNK):
            chunk = rows[start : start + CLIPS_PER_CHUNK]
            sounds = []
            for clip in chunk:
                samples = clip.frames * SAMPLE_RATE
                if noises.empty:
                    words = np.frombuffer(_draw(seed, clip.uid, "white"), np.uint32)
                    sound = np.random.default_rng(words).uniform(-1, 1, samples).astype(np.float32)
                else:
                    sound = select_noise(pools[clip.split], seed, clip.uid, samples, read).audio
                sounds.append(sound * np.float32(SILENT_CLIP_REFERENCE_RMS / rms(sound)))
            embedded = embedder.embed_waveforms(sounds, [clip.frames for clip in chunk])
            results |= {clip.uid: values for clip, values in zip(chunk, embedded, strict=True)}
            bar.update(len(chunk))
    return results


def _draw(seed: int, uid: str, candidate: str) -> bytes:
    """A rank that a candidate has for this clip alone (rendezvous hashing)."""
    return hashlib.sha256(f"{seed}/{uid}/{candidate}".encode()).digest()
