"""The audio features of every condition of an evaluation: mixtures with noise, and controls.

The controls replace a clip's sound: by another clip's (`Shuffled`), or by a negative of AVSBench-Robust, a sound of
nothing in the picture (silence, noise, off-screen). Every replacement is VGGish's features of a real sound. It depends
on the seed, the clip and the available candidates alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas
from tqdm import tqdm

from qdformer.audio.features.extract import CLIPS_PER_CHUNK
from qdformer.audio.io.level import rms
from qdformer.audio.io.read import read_audio
from qdformer.audio.noise.collect import read_noise_table
from qdformer.audio.noise.mixing import SILENT_CLIP_REFERENCE_RMS, select_noise
from qdformer.data.layout import DataError
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.digests import rendezvous_hash

if TYPE_CHECKING:
    from qdformer.audio.features.extract import Embedder, EmbedderConfig

_RECORDINGS_KEPT = 64


@dataclass(frozen=True)
class ConditionFeatures:
    """Builds the audio features of each condition and control of an evaluation, by name.

    A control whose features come from clips takes them from clean sound. `qdformer.config.evaluate` describes the
    controls.
    """

    stores: Mapping[str, Mapping[str, np.ndarray]]
    """Features of the mixed conditions, `clean` among them: clip uid -> [T, 128]."""
    clips: pandas.DataFrame
    """The clips to evaluate: rows of the manifest."""
    pool: pandas.DataFrame
    """The clips of all splits that have features."""
    embedder: EmbedderConfig
    """How the features were computed."""
    noise: Path
    """Folder with the noise recordings."""
    seed: int
    """Of the controls."""
    noise_seed: int
    """Of the noise, as the stage mix uses it."""

    def build(self, name: str) -> Mapping[str, np.ndarray]:
        """The features [T, 128] of the condition or control `name` by clip uid."""
        store = self.stores.get(name, self.stores["clean"])
        frames = dict(zip(self.clips["uid"], self.clips["frames"], strict=True))
        if name == "shuffled":
            return Shuffled(store, frames, self.seed)
        if name == "silence":
            return Constant(self.embedder.load().embed_silence(1)[0], frames)
        if name == "noise":
            return noise_features(self.clips, read_noise_table(self.noise), self.embedder.load(), self.noise_seed)
        if name == "offscreen":
            return OffScreen(store, self.clips, self.pool, self.seed)
        return store


class Shuffled(Mapping[str, np.ndarray]):
    """Control: every clip gets another clip's features, none its own.

    `frames` maps each clip to its number of frames. The pairs form a random ring through the clips of each length, so
    that the sound of each clip is used exactly once and whole. The two clips of a pair may have the same class by
    chance.
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


class Constant(Mapping[str, np.ndarray]):
    """Control: every frame of every clip gets `features_A` [A], for instance those of silence.

    `frames` maps each clip to its number of frames.
    """

    def __init__(self, features_A: np.ndarray, frames: Mapping[str, int]) -> None:
        self.features_A = features_A
        self.frames = frames

    def __getitem__(self, uid: str) -> np.ndarray:
        return np.repeat(self.features_A[None], self.frames[uid], axis=0)

    def __iter__(self) -> Iterator[str]:
        return iter(self.frames)

    def __len__(self) -> int:
        return len(self.frames)


class OffScreen(Mapping[str, np.ndarray]):
    """Control: every clip gets the features of another clip whose sounding objects are not in its picture.

    Such a clip has sounding classes, all of them visible in its own picture and none of them among this clip's
    classes. It comes from this clip's split if possible, as in AVSBench-Robust, else from any. A longer sound is cut
    at the end; a shorter one is repeated. `pool` holds the candidates, each of which has `features`; it and `clips`
    have the columns uid, split, classes, silent, off_screen and frames of the manifest. Raises `DataError`, naming the
    clip, if a clip has no candidate.
    """

    def __init__(
        self, features: Mapping[str, np.ndarray], clips: pandas.DataFrame, pool: pandas.DataFrame, seed: int
    ) -> None:
        self.features = features
        self.frames = dict(zip(clips["uid"], clips["frames"], strict=True))
        sounding = [row for row in pool.itertuples() if row.classes and not row.silent and not row.off_screen]
        self.source: dict[str, str] = {}
        for clip in clips.itertuples():
            candidates = [row for row in sounding if not {*row.classes} & {*clip.classes}]
            candidates = [row for row in candidates if row.split == clip.split] or candidates
            if not candidates:
                raise DataError(
                    f"clip {clip.uid}: no other clip has a named sound of classes that are not in this clip's picture; "
                    "expected one (or remove offscreen from evaluate.controls)"
                )
            self.source[clip.uid] = _first_by_hash(candidates, seed, clip.uid)

    def __getitem__(self, uid: str) -> np.ndarray:
        features_TA = self.features[self.source[uid]]
        return np.resize(features_TA, (self.frames[uid], features_TA.shape[1]))

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)


def noise_features(
    clips: pandas.DataFrame, noises: pandas.DataFrame, embedder: Embedder, seed: int
) -> dict[str, np.ndarray]:
    """The features of background noise alone for each clip: [T, 128] float32 by uid.

    It is the noise that the stage mix adds to the clip with this `seed`, from the noises of the clip's split. If the
    data set has no noises at all, it is white noise, as in AVSBench-Robust. Its RMS is `SILENT_CLIP_REFERENCE_RMS`,
    which mixing assumes for a silent clip. `clips` has uid, split and frames of the manifest; `noises` is
    `qdformer.audio.noise.collect.read_noise_table`.

    Raises:
        AudioError: a noise cannot be read or is silent, or only the clip's split has no noise.
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
            waveforms = []
            for clip in chunk:
                samples = clip.frames * SAMPLE_RATE
                if noises.empty:
                    words = np.frombuffer(rendezvous_hash(seed, clip.uid, "white"), np.uint32)
                    waveform = np.random.default_rng(words).uniform(-1, 1, samples).astype(np.float32)
                else:
                    waveform = select_noise(pools[clip.split], seed, clip.uid, samples, read).audio
                waveforms.append(waveform * np.float32(SILENT_CLIP_REFERENCE_RMS / rms(waveform)))
            embedded = embedder.embed_waveforms(waveforms, [clip.frames for clip in chunk])
            results |= {clip.uid: values for clip, values in zip(chunk, embedded, strict=True)}
            bar.update(len(chunk))
    return results


def _first_by_hash(candidates: list[Any], seed: int, uid: str) -> str:
    """The uid of the candidate with the smallest hash for this clip: the choice for other clips does not change it."""
    return min(candidates, key=lambda row: rendezvous_hash(seed, uid, row.uid)).uid
