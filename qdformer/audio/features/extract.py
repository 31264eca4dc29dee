"""VGGish embeddings of clips, one for each video frame, made in bounded memory and kept in HDF5.

Every patch passes the network in a batch of one fixed shape and on one thread, so its 128 numbers
are the same whatever else is in the batch, however many workers there are, and wherever a run was
interrupted. Speed comes from several such batches at once.

Shapes: P patches of a clip, T frames, F frames of 10 ms, M = 64 mel bands, A = 128.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from qdformer.audio.features.store import FeatureInfo, Journal, ShortClips, write_features
from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.vggish.log_mel import PATCH_SAMPLES, centered_patches, log_mel_patches
from qdformer.audio.vggish.log_mel_pickle import is_log_mel_file, read_log_mel
from qdformer.audio.vggish.model import load_pca, load_vggish
from qdformer.utils.constants import EMBEDDING_SIZE, SAMPLE_RATE

PATCHES_PER_BATCH = 16  # as fast as larger ones, with a quarter of the memory of 64
CLIPS_PER_CHUNK = 16  # clips of T frames fill T batches


class Clip(NamedTuple):
    """A clip to embed: its name, sound file and number of video frames."""

    uid: str
    path: Path
    frames: int

    def stamp(self) -> str:
        """What changes when the sound or the number of frames does; empty for a missing file."""
        try:
            status = self.path.stat()
        except OSError:
            return ""
        return f"{self.frames} {status.st_size} {status.st_mtime_ns}"


class Embedding(NamedTuple):
    """What became of a clip: its embeddings [T, 128] float32, or why its sound cannot be used."""

    clip: Clip
    embeddings: np.ndarray | None
    problem: str = ""


@dataclass(frozen=True)
class EmbedderConfig:
    """What embeddings are made with, as files and settings, so that it can be sent to other machines.

    `weights_sha256` and `pca_sha256` are digests that the files must have, or their first digits.
    """

    weights: Path
    weights_sha256: str
    short_clips: ShortClips
    center: bool = False
    pca: Path | None = None
    pca_sha256: str = ""

    def info(self, condition: str) -> FeatureInfo:
        """What the feature file of `condition` says about itself."""
        pca = self.pca_sha256 if self.pca else ""
        return FeatureInfo(condition, self.weights_sha256, self.short_clips, self.center, pca)

    def load(self) -> Embedder:
        """Raise `WeightsError` if a file cannot be used."""
        pca = load_pca(self.pca, self.pca_sha256) if self.pca else None
        return Embedder(load_vggish(self.weights, self.weights_sha256), self.short_clips, self.center, pca)


class Embedder:
    """VGGish with the rules that give each video frame one embedding.

    Patch i is frame i's: 0.96 s long, from 0.96 i s, as published; with `center`, around i + 0.5 s.
    A longer sound's further patches are not used. For a shorter one the last embedding is repeated,
    or zeros follow, as `short_clips` says. A sound shorter than one patch is filled up with silence.
    """

    def __init__(
        self, vggish: nn.Module, short_clips: ShortClips, center: bool = False, pca: nn.Module | None = None
    ) -> None:
        self.vggish, self.short_clips, self.pca = vggish, short_clips, pca
        self.center = center
        self._cut = centered_patches if center else log_mel_patches

    def embed(self, clips: Sequence[Clip]) -> list[Embedding]:
        """Embed a few clips; call it where `torch.get_num_threads()` is 1."""
        results: list[Embedding] = []
        usable: list[Clip] = []
        patches: list[Tensor] = []
        for clip in clips:
            try:
                patches.append(self._read(clip.path)[: clip.frames])
                usable.append(clip)
            except AudioError as error:
                results.append(Embedding(clip, None, str(error)))
        if usable:
            embedded = self._embed(patches, [clip.frames for clip in usable])
            results += [Embedding(clip, own) for clip, own in zip(usable, embedded, strict=True)]
        return results

    def embed_waveforms(self, sounds: Sequence[np.ndarray], frames: Sequence[int]) -> list[np.ndarray]:
        """Embed a few sounds [S] float32 at 16 kHz: [T, 128] float32 for each, T being its number in `frames`."""
        return self._embed([self._patches(sound)[:T] for sound, T in zip(sounds, frames, strict=True)], frames)

    def embed_silence(self, frames: int) -> np.ndarray:
        """What digital silence of `frames` frames gives: [T, 128] float32."""
        return self._run(self._patches(np.zeros(0, np.float32))).numpy().repeat(frames, axis=0)

    def _read(self, path: Path) -> Tensor:
        """The patches of a sound file, or those that AVSBench has published in its place."""
        if not is_log_mel_file(path):
            return self._patches(read_audio(path))
        if self.center:
            raise AudioError(f"{path}: a spectrogram cannot be cut anew; features.center needs the sound (audio_wav)")
        return read_log_mel(path)

    def _patches(self, samples: np.ndarray) -> Tensor:
        return self._cut(np.pad(samples, (0, max(0, PATCH_SAMPLES - len(samples)))), SAMPLE_RATE)

    @torch.inference_mode()
    def _run(self, patches_P1FM: Tensor) -> Tensor:
        """The embeddings [P, 128], computed in batches of one shape."""
        results = []
        for batch in patches_P1FM.split(PATCHES_PER_BATCH):
            filled = torch.cat([batch, batch.new_zeros(PATCHES_PER_BATCH - len(batch), *batch.shape[1:])])
            embeddings = self.vggish(filled)
            results.append((self.pca(embeddings) if self.pca else embeddings)[: len(batch)])
        return torch.cat(results)

    def _embed(self, patches: Sequence[Tensor], frames: Sequence[int]) -> list[np.ndarray]:
        parts = self._run(torch.cat(list(patches))).split([len(part) for part in patches])
        return [self._fill(own, T) for own, T in zip(parts, frames, strict=True)]

    def _fill(self, own: Tensor, frames: int) -> np.ndarray:
        embeddings = own.numpy()
        fill = embeddings[-1:] if self.short_clips == "repeat" else np.zeros((1, EMBEDDING_SIZE), np.float32)
        return np.concatenate([embeddings, np.repeat(fill, frames - len(embeddings), axis=0)])


Executor = Callable[[EmbedderConfig, Iterable[list[Clip]]], Iterator[list[Embedding]]]
"""Embeds chunks of clips; gives each chunk's results as they get ready, in any order. It draws the
next chunk only when a worker is about to want it, so that little waits in memory."""


def embed_in_threads(recipe: EmbedderConfig, chunks: Iterable[list[Clip]]) -> Iterator[list[Embedding]]:
    """An `Executor` on threads of this process, as many as PyTorch would use (`OMP_NUM_THREADS` sets it)."""
    embedder, threads = recipe.load(), torch.get_num_threads()
    chunks = iter(chunks)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting = deque(pool.submit(embedder.embed, chunk) for chunk in islice(chunks, 2 * threads))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(embedder.embed, chunk) for chunk in islice(chunks, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' calls also set what the matrix library uses in this one


@dataclass(frozen=True)
class ExtractionSummary:
    """How a run ended: clips written, of which a run before had left `resumed`, and (uid, reason) of those left out."""

    written: int
    resumed: int
    left_out: list[tuple[str, str]]


def extract_features(
    path: str | Path,
    clips: Sequence[Clip],
    recipe: EmbedderConfig,
    condition: str,
    cache: str | Path,
    bad_clips: float = 0.0,
    executor: Executor = embed_in_threads,
    progress: bool = True,
) -> ExtractionSummary:
    """Write the feature file `path` of a condition; a run that was killed goes on where it was.

    Args:
        path: the HDF5 file. It appears when it is complete; its bytes depend on the arguments above alone.
        clips: what it is to hold, in this order.
        recipe: what the embeddings are made with.
        cache: folder for what is finished until the file is written.
        bad_clips: share of the clips whose sound may be unusable; they are left out.
        executor: where the embeddings are computed.
        progress: show a progress bar.

    Raises:
        AudioError: too many sounds are unusable; all of them are named, and the others are kept in `cache`.
        FeatureError: another process makes the same features, or a file cannot be written.
        WeightsError: the weights cannot be used.
    """
    path, info = Path(path), recipe.info(condition)
    stamps = {clip.uid: clip.stamp() for clip in clips}
    with Journal(Path(cache) / f"{path.stem}.journal", info) as journal:
        missing = [clip for clip in clips if not journal.has(clip.uid, stamps[clip.uid])]
        problems: dict[str, str] = {}
        bar = tqdm(
            total=len(clips), initial=len(clips) - len(missing), desc=condition, disable=None if progress else True
        )
        with bar:
            for results in executor(recipe, _chunks(missing)) if missing else ():
                problems |= {result.clip.uid: result.problem for result in results if result.problem}
                good = [result for result in results if not result.problem]
                journal.add((clip.uid, stamps[clip.uid], embeddings) for clip, embeddings, _ in good)
                bar.update(len(results))
        left_out = [(clip.uid, problems[clip.uid]) for clip in clips if clip.uid in problems]
        _check_share(left_out, len(clips), bad_clips)
        usable = (clip.uid for clip in clips if clip.uid not in problems)
        written = write_features(path, ((uid, journal.read(uid)) for uid in usable), info, [uid for uid, _ in left_out])
        journal.finish()
    return ExtractionSummary(written, len(clips) - len(missing), left_out)


def _chunks(clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    for start in range(0, len(clips), CLIPS_PER_CHUNK):
        yield list(clips[start : start + CLIPS_PER_CHUNK])


def _check_share(left_out: list[tuple[str, str]], clips: int, allowed: float) -> None:
    if len(left_out) > allowed * clips or (left_out and len(left_out) == clips):
        reasons = "".join(f"\n  clip {uid}: {problem}" for uid, problem in left_out)
        raise AudioError(
            f"{len(left_out)} of {clips} clips cannot be used, and features.bad_clips allows {allowed:.1%}; "
            f"the others are kept, and a new run goes on from them:{reasons}"
        )
