"""Extract VGGish embeddings of clips, one per video frame, in bounded memory and into an HDF5 file.

The network always runs on batches of one fixed shape and on one thread. The embedding of a patch is therefore the same
for any other content of its batch, any number of workers, and any interruption of the run. Several batches run in
parallel.

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
from qdformer.utils.digests import file_sha256

PATCHES_PER_BATCH = 16  # as fast as larger batches, with a quarter of the memory of 64
CLIPS_PER_CHUNK = 16  # 16 clips of T frames fill T batches


class Clip(NamedTuple):
    """A clip to embed: its id, audio file and number of video frames."""

    uid: str
    path: Path
    frames: int

    def stamp(self) -> str:
        """A text that changes with the content of the audio file and the number of frames; empty for a missing file."""
        try:
            return f"{self.frames} {file_sha256(self.path)}"
        except OSError:
            return ""


class Embedding(NamedTuple):
    """The result of a clip: its embeddings [T, 128] float32, or the problem of its audio."""

    clip: Clip
    embeddings: np.ndarray | None
    problem: str = ""


@dataclass(frozen=True)
class EmbedderConfig:
    """The files and settings of an `Embedder`, which can be sent to other processes.

    `weights_sha256` and `pca_sha256` are hex digests that the files must have, or their first digits.
    """

    weights: Path
    weights_sha256: str
    short_clips: ShortClips
    center: bool = False
    pca: Path | None = None
    pca_sha256: str = ""

    def info(self, condition: str) -> FeatureInfo:
        """The attributes of the feature file of `condition`."""
        pca = self.pca_sha256 if self.pca else ""
        return FeatureInfo(condition, self.weights_sha256, self.short_clips, self.center, pca)

    def load(self) -> Embedder:
        """Load the network; raises `WeightsError` if a file is not usable."""
        pca = load_pca(self.pca, self.pca_sha256) if self.pca else None
        return Embedder(load_vggish(self.weights, self.weights_sha256), self.short_clips, self.center, pca)


class Embedder:
    """VGGish with the rules that give each video frame one embedding.

    Frame i gets patch i: 0.96 s from 0.96 i s on, as published; with `center`, the patch centered on i + 0.5 s. Patches
    beyond the number of frames are not used. If the audio is shorter, the last embedding is repeated or zeros are
    appended, according to `short_clips`. Audio shorter than one patch is padded with silence.

    The network runs on batches filled up to `patches_per_batch`, which makes an embedding independent of the other
    clips. None runs it on the patches as they come, which is faster for one short clip and differs in the last bits.
    """

    def __init__(
        self,
        vggish: nn.Module,
        short_clips: ShortClips,
        center: bool = False,
        pca: nn.Module | None = None,
        patches_per_batch: int | None = PATCHES_PER_BATCH,
    ) -> None:
        self.vggish, self.short_clips, self.pca = vggish, short_clips, pca
        self.patches_per_batch = patches_per_batch
        self.center = center
        self._cut = centered_patches if center else log_mel_patches

    def embed(self, clips: Sequence[Clip]) -> list[Embedding]:
        """Embed a few clips. `torch.get_num_threads()` must be 1 for reproducible results."""
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

    def embed_waveforms(self, waveforms: Sequence[np.ndarray], frames: Sequence[int]) -> list[np.ndarray]:
        """Embed a few waveforms [S] float32 at 16 kHz; returns [T, 128] float32 for each, with T from `frames`."""
        patches = [self._patches(waveform)[:T] for waveform, T in zip(waveforms, frames, strict=True)]
        return self._embed(patches, frames)

    def embed_silence(self, frames: int) -> np.ndarray:
        """The embeddings [T, 128] float32 of digital silence of `frames` frames."""
        return self._run(self._patches(np.zeros(0, np.float32))).numpy().repeat(frames, axis=0)

    def _read(self, path: Path) -> Tensor:
        """The patches of an audio file, or those of AVSBench's published spectrogram."""
        if not is_log_mel_file(path):
            return self._patches(read_audio(path))
        if self.center:
            raise AudioError(
                f"{path}: the patches of a spectrogram cannot be changed; features.center needs the audio (audio_wav)"
            )
        return read_log_mel(path)

    def _patches(self, samples: np.ndarray) -> Tensor:
        return self._cut(np.pad(samples, (0, max(0, PATCH_SAMPLES - len(samples)))), SAMPLE_RATE)

    @torch.inference_mode()
    def _run(self, patches_P1FM: Tensor) -> Tensor:
        """The embeddings [P, 128], computed in batches of a fixed shape unless `patches_per_batch` is None."""
        results, size = [], self.patches_per_batch or len(patches_P1FM)
        for batch in patches_P1FM.split(size):
            filled = torch.cat([batch, batch.new_zeros(size - len(batch), *batch.shape[1:])])
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
"""Embeds chunks of clips and yields the results of each chunk when they are ready, in any order. It takes the next
chunk only when a worker is about to need it, so that few results wait in memory."""


def embed_in_threads(config: EmbedderConfig, chunks: Iterable[list[Clip]]) -> Iterator[list[Embedding]]:
    """An `Executor` on threads of this process, as many as PyTorch would use (see `OMP_NUM_THREADS`)."""
    embedder, threads = config.load(), torch.get_num_threads()
    remaining = iter(chunks)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        pending = deque(pool.submit(embedder.embed, chunk) for chunk in islice(remaining, 2 * threads))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(embedder.embed, chunk) for chunk in islice(remaining, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' calls also change the number of threads of this one


@dataclass(frozen=True)
class ExtractionSummary:
    """Number of clips written, number of them from an earlier run, and (uid, reason) of clips left out."""

    written: int
    resumed: int
    left_out: list[tuple[str, str]]


def extract_features(
    path: str | Path,
    clips: Sequence[Clip],
    config: EmbedderConfig,
    condition: str,
    cache: str | Path,
    bad_clips: float = 0.0,
    executor: Executor = embed_in_threads,
    progress: bool = True,
) -> ExtractionSummary:
    """Write the feature file `path` of a condition; clips of an earlier run are reused.

    Args:
        path: the HDF5 file, written atomically. Its bytes depend on `clips`, `config` and `condition` only.
        clips: the clips, in the order of the file.
        config: files and settings of the embedder.
        condition: name of the condition.
        cache: folder of the journal, which keeps finished clips: those whose audio stays the same are not embedded
            again when other clips join them.
        bad_clips: share of the clips whose audio may be unusable; they are left out.
        executor: computes the embeddings.
        progress: show a progress bar.

    Raises:
        AudioError: too many audio files are unusable; all are named, and the other clips are kept in `cache`.
        FeatureError: another process extracts the same features, or a file cannot be written.
        WeightsError: the weights are not usable.
    """
    path, info = Path(path), config.info(condition)
    stamps = {clip.uid: clip.stamp() for clip in clips}
    with Journal(Path(cache) / f"{path.stem}.journal", info) as journal:
        missing = [clip for clip in clips if not journal.has(clip.uid, stamps[clip.uid])]
        problems: dict[str, str] = {}
        bar = tqdm(
            total=len(clips), initial=len(clips) - len(missing), desc=condition, disable=None if progress else True
        )
        with bar:
            for results in executor(config, _chunks(missing)) if missing else ():
                problems |= {result.clip.uid: result.problem for result in results if result.problem}
                journal.add(
                    (clip.uid, stamps[clip.uid], embeddings)
                    for clip, embeddings, _ in results
                    if embeddings is not None
                )
                bar.update(len(results))
        left_out = [(clip.uid, problems[clip.uid]) for clip in clips if clip.uid in problems]
        _check_share(left_out, len(clips), bad_clips)
        usable = (clip.uid for clip in clips if clip.uid not in problems)
        written = write_features(path, ((uid, journal.read(uid)) for uid in usable), info, [uid for uid, _ in left_out])
        journal.finish(len(clips))
    return ExtractionSummary(written, len(clips) - len(missing), left_out)


def _chunks(clips: Sequence[Clip]) -> Iterator[list[Clip]]:
    for start in range(0, len(clips), CLIPS_PER_CHUNK):
        yield list(clips[start : start + CLIPS_PER_CHUNK])


def _check_share(left_out: list[tuple[str, str]], clips: int, allowed: float) -> None:
    if len(left_out) > allowed * clips or (left_out and len(left_out) == clips):
        reasons = "".join(f"\n  clip {uid}: {problem}" for uid, problem in left_out)
        raise AudioError(
            f"{len(left_out)} of {clips} clips cannot be used, and features.bad_clips allows {allowed:.1%}; "
            f"the other clips are kept, and another run resumes from them:{reasons}"
        )
