"""VGGish embeddings of clips, one for each video frame, kept in HDF5.

A file holds one condition: the group `embeddings` has one dataset [T, 128] float32 for each clip,
named by its uid and chunked as a whole. The file's attributes say how they were made:
`version`, `condition`, `weights_sha256`, `sample_rate`, `short_clips`, `clips`.

Shapes: P patches of a clip, T frames, A = 128.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import torch

from qdformer.audio.read import SAMPLE_RATE, read_audio
from qdformer.audio.vggish import EMBEDDING, PATCH_SAMPLES, VGGish, log_mel_patches
from qdformer.errors import InputError

VERSION = 1
ShortClips = Literal["repeat", "zero"]
_GROUP = "embeddings"


class FeatureError(InputError):
    """A feature file cannot be used; the message names it, what it holds and what was expected."""


@dataclass(frozen=True)
class FeatureInfo:
    """How the features of a file were made."""

    condition: str
    weights_sha256: str
    short_clips: ShortClips
    sample_rate: int = SAMPLE_RATE
    version: int = VERSION


def extract(
    clips: Iterable[tuple[str, Path, int]], vggish: VGGish, short_clips: ShortClips, batch_patches: int = 64
) -> Iterator[tuple[str, np.ndarray]]:
    """Embed clips given as (uid, sound file, T); yields (uid, [T, 128] float32) in the same order.

    Patch i (0.96 s long, from 0.96 i s) is frame i's. A longer sound's further patches are not used;
    for a shorter one the last patch is repeated, or zeros follow, as `short_clips` says. A sound
    shorter than one patch is filled up with silence. Patches of several clips share a batch.

    Raises:
        AudioError: a sound cannot be read.
    """
    waiting: list[tuple[str, int, torch.Tensor]] = []
    for uid, path, frames in clips:
        waiting.append((uid, frames, _patches(path)[:frames]))
        if sum(len(patches) for _, _, patches in waiting) >= batch_patches:
            yield from _embed(waiting, vggish, short_clips)
            waiting = []
    if waiting:
        yield from _embed(waiting, vggish, short_clips)


@torch.inference_mode()
def embed_silence(frames: int, vggish: VGGish) -> np.ndarray:
    """What VGGish makes of `frames` patches of digital silence: [T, 128] float32."""
    patch = log_mel_patches(np.zeros(PATCH_SAMPLES, np.float32), SAMPLE_RATE)
    return vggish(patch).numpy().repeat(frames, axis=0)


def write_features(path: str | Path, features: Iterable[tuple[str, np.ndarray]], info: FeatureInfo) -> int:
    """Write a feature file and return its number of clips.

    It is written beside `path` under another name and moved there when it is complete, so that
    `path` always holds a whole file. The same features give the same bytes.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)
    count = 0
    with h5py.File(partial, "x", libver="v110") as file:
        group = file.create_group(_GROUP, track_order=True)
        for uid, embeddings in features:
            group.create_dataset(uid, data=embeddings.astype("<f4"), chunks=embeddings.shape, track_times=False)
            count += 1
        for name, value in (asdict(info) | {"clips": count}).items():
            file.attrs[name] = value
    os.replace(partial, path)
    return count


class FeatureStore(Mapping[str, np.ndarray]):
    """Features of a file by clip uid: [T, 128] float32, read when asked for.

    The file is opened at the first read, anew in each process, so that a store can be passed to
    data-loader workers by fork or pickle.

    Args:
        path: the file.
        weights_sha256: digest of the VGGish weights that must have made it; None takes any.

    Raises:
        FeatureError: the file is missing, damaged, of another version, or made with other weights.
    """

    def __init__(self, path: str | Path, weights_sha256: str | None = None) -> None:
        self.path = Path(path)
        self._handle: tuple[int, h5py.File] | None = None
        self.info = _read_info(self.path)
        if weights_sha256 is not None and self.info.weights_sha256 != weights_sha256:
            made, asked = self.info.weights_sha256, weights_sha256
            raise FeatureError(f"{self.path}: made with VGGish weights {made}, expected {asked}")

    def __getitem__(self, uid: str) -> np.ndarray:
        group = self._group()
        if uid not in group:
            raise KeyError(f"{self.path}: no features of clip {uid}")
        return group[uid][()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._group())

    def __len__(self) -> int:
        return len(self._group())

    def __contains__(self, uid: object) -> bool:
        return uid in self._group()

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_handle": None}

    def close(self) -> None:
        """Close this process's handle; the next read opens another."""
        if self._handle is not None and self._handle[0] == os.getpid():
            self._handle[1].close()
        self._handle = None

    def _group(self) -> h5py.Group:
        if self._handle is None or self._handle[0] != os.getpid():
            self._handle = (os.getpid(), h5py.File(self.path, "r"))
        return self._handle[1][_GROUP]


def _read_info(path: Path) -> FeatureInfo:
    if not path.is_file():
        raise FeatureError(f"{path}: no such feature file; the stage features writes it")
    try:
        with h5py.File(path, "r") as file:
            values = {name: file.attrs[name] for name in FeatureInfo.__dataclass_fields__}
            complete = _GROUP in file and len(file[_GROUP]) == file.attrs["clips"]
    except (OSError, KeyError) as error:
        raise FeatureError(f"{path}: not a feature file: {error}") from None
    if values["version"] != VERSION:
        raise FeatureError(f"{path}: features of version {values['version']}, expected {VERSION}")
    if not complete:
        raise FeatureError(f"{path}: does not hold all the clips it was made of")
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    return FeatureInfo(**plain)


def _patches(path: Path) -> torch.Tensor:
    samples = read_audio(path)
    if len(samples) < PATCH_SAMPLES:
        samples = np.pad(samples, (0, PATCH_SAMPLES - len(samples)))
    return log_mel_patches(samples, SAMPLE_RATE)


@torch.inference_mode()
def _embed(
    clips: list[tuple[str, int, torch.Tensor]], vggish: VGGish, short_clips: ShortClips
) -> Iterator[tuple[str, np.ndarray]]:
    device = next(vggish.parameters()).device
    batch = torch.cat([patches for _, _, patches in clips]).to(device)
    embeddings = vggish(batch).cpu().numpy()
    ends = np.cumsum([len(patches) for _, _, patches in clips])
    for (uid, frames, _), part in zip(clips, np.split(embeddings, ends[:-1]), strict=True):
        missing = frames - len(part)
        fill = part[-1:] if short_clips == "repeat" else np.zeros((1, EMBEDDING), np.float32)
        yield uid, np.concatenate([part, np.repeat(fill, missing, axis=0)]) if missing else part
