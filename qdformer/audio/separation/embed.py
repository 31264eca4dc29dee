"""VGGish embeddings of the separated tracks of clips.

Shapes: T frames, V tracks, S samples, A = 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qdformer.audio.features.extract import Clip, Embedder, EmbedderConfig, Embedding
from qdformer.audio.features.store import FeatureInfo
from qdformer.audio.io.read import AudioError, read_audio
from qdformer.audio.separation.model import Separator, load_separator
from qdformer.audio.vggish.log_mel_pickle import is_log_mel_file


@dataclass(frozen=True, kw_only=True)
class TrackEmbedderConfig(EmbedderConfig):
    """The files and settings of a `TrackEmbedder`."""

    separator: Path
    separator_sha256: str

    def info(self, condition: str) -> FeatureInfo:
        return replace(super().info(condition), separator=self.separator_sha256)

    def load(self) -> TrackEmbedder:
        """Load both networks; raises `WeightsError` if a file is not usable."""
        return TrackEmbedder(load_separator(self.separator, self.separator_sha256), super().load())


class TrackEmbedder(Embedder):
    """Separates the whole sound of each clip into tracks, and embeds each as `Embedder` embeds a clip: [T, V, A]."""

    def __init__(self, separator: Separator, embedder: Embedder) -> None:
        super().__init__(embedder.vggish, embedder.short_clips, embedder.center, embedder.pca)
        self.separator = separator

    def embed(self, clips: Sequence[Clip]) -> list[Embedding]:
        results = []
        for clip in clips:
            try:
                tracks_VS = self.separator.separate(_read(clip.path))
            except AudioError as error:
                results.append(Embedding(clip, None, str(error)))
                continue
            embedded = self.embed_waveforms(list(tracks_VS), [clip.frames] * len(tracks_VS))
            results.append(Embedding(clip, np.stack(embedded, axis=1)))
        return results


def _read(path: Path) -> np.ndarray:
    if is_log_mel_file(path):
        raise AudioError(f"{path}: a spectrogram cannot be separated; expected the audio (audio_wav)")
    return read_audio(path)
