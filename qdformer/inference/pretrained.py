"""The whole path from frames and waveform to masks as one module: to share as a folder, and to export.

Shapes: T frames (one per second), H W pixels, S samples, F = 96 frames of 10 ms, M = 64 mel bands, A = 128,
C object classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from qdformer.audio.features.extract import Embedder
from qdformer.audio.vggish.log_mel import (
    HOP_LENGTH,
    LOG_OFFSET,
    N_FFT,
    N_MELS,
    PATCH_FRAMES,
    WIN_LENGTH,
    mel_filter_bank,
)
from qdformer.audio.vggish.model import VGGish
from qdformer.config.model import parse_model_settings
from qdformer.data.manifest import Classes
from qdformer.inference.predictor import Predictor
from qdformer.inference.segmenter import DEFAULT_MERGE, Merge, Segmenter
from qdformer.models.registry import build_model
from qdformer.utils.constants import SAMPLE_RATE

if TYPE_CHECKING:
    from qdformer.audio.features.store import ShortClips
    from qdformer.config.train import Resize


class PretrainedModel(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="qdformer",
    pipeline_tag="image-segmentation",
    tags=["audio-visual-segmentation", "qdformer"],
    license="apache-2.0",
):
    """Model, VGGish and input rules. `save_pretrained(folder)` writes `model.safetensors`, `config.json` and a model
    card; `from_pretrained(folder or hub id)` reads them, and `push_to_hub(id)` shares them.

    Args:
        model: the settings of the model (section `train.model`).
        classes: names of the object classes 1..C.
        unseen: for each class, whether the test pictures and recordings are unseen in training.
        clip_frames: length of a training clip in seconds.
        image_size, resize, short_clips, center: the input rules, as in `Predictor`.
    """

    def __init__(
        self,
        model: dict[str, Any],
        classes: list[str],
        unseen: list[bool],
        clip_frames: int = 5,
        image_size: int = 128,
        resize: Resize = "longest",
        short_clips: ShortClips = "repeat",
        center: bool = False,
    ) -> None:
        super().__init__()
        settings = parse_model_settings({**model, "backbone_weights": None, "backbone_sha256": None})
        self.method = build_model(settings, len(classes))
        self.vggish = VGGish()
        self.classes = Classes(tuple(classes), tuple(unseen))
        self.clip_frames, self.image_size = clip_frames, image_size
        self.resize, self.short_clips, self.center = resize, short_clips, center
        self.eval().requires_grad_(False)

    @classmethod
    def of(cls, segmenter: Segmenter) -> PretrainedModel:
        """The parts of a segmenter."""
        predictor = segmenter.predictor
        embedder, names = predictor.embedder, predictor.classes
        own = cls(
            model=predictor.model.settings.model_dump(),
            classes=list(names.names),
            unseen=list(names.unseen),
            clip_frames=segmenter.clip_frames,
            image_size=predictor.image_size,
            resize=predictor.resize,
            short_clips=embedder.short_clips,
            center=embedder.center,
        )
        own.method.load_state_dict(predictor.model.state_dict())
        own.vggish.load_state_dict(embedder.vggish.state_dict())
        return own

    def segmenter(
        self, hop: int | None = None, merge: Merge = DEFAULT_MERGE, device: torch.device | str = "cpu"
    ) -> Segmenter:
        """A segmenter that uses these weights; arguments as for `Segmenter`."""
        embedder = Embedder(self.vggish, self.short_clips, self.center, patches_per_batch=None)
        predictor = Predictor(self.method.to(device), self.classes, embedder, self.image_size, self.resize)
        return Segmenter(predictor, self.clip_frames, hop, merge)

    def forward(self, frames_THW3: Tensor, waveform_S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Segment one clip of `clip_frames` seconds.

        Args:
            frames_THW3: uint8, RGB, one frame per second, already of the model's input size; `longest` pads the shorter
                side with black at the end.
            waveform_S: float32, 16 kHz, mono, the same T seconds.

        Returns:
            The class of each pixel, int64 [T, H, W] (0 background, 1..C), the probability that it belongs to a sounding
            object [T, H, W], and the probability that a class sounds and is visible [T, C].
        """
        images_BTCHW = frames_THW3.permute(0, 3, 1, 2)[None]
        audio_BTA = self._embed(waveform_S, len(frames_THW3))[None]
        predict = type(self.method).predict.__wrapped__  # without inference mode, which cannot be exported
        prediction = predict(self.method, images_BTCHW, audio_BTA)
        return prediction.semantic_BTHW[0], prediction.foreground_BTHW[0], prediction.class_probs_BTC[0]

    def _embed(self, waveform_S: Tensor, count: int) -> Tensor:
        """VGGish's embeddings of the seconds, [T, A], by the rules of `Embedder`."""
        log_mel_FM = self._log_mel(waveform_S)
        length, starts = len(log_mel_FM), np.arange(count) * PATCH_FRAMES
        if self.center:
            per_second = SAMPLE_RATE // HOP_LENGTH
            starts = np.arange(count) * per_second + (per_second - PATCH_FRAMES) // 2
        else:
            starts = starts[: max(1, length // PATCH_FRAMES)]
        places_PF = np.minimum(starts[:, None] + np.arange(PATCH_FRAMES), length - 1)
        patches_P1FM = log_mel_FM[torch.from_numpy(places_PF)][:, None]
        embeddings_PA = self.vggish(patches_P1FM)
        missing = count - len(starts)
        if missing:
            last = embeddings_PA[-1:] if self.short_clips == "repeat" else torch.zeros_like(embeddings_PA[-1:])
            embeddings_PA = torch.cat([embeddings_PA, last.expand(missing, -1)])
        return embeddings_PA

    @staticmethod
    def _log_mel(waveform_S: Tensor) -> Tensor:
        """`qdformer.audio.vggish.log_mel` with the Fourier transform as a matrix, which every format can hold."""
        count = (len(waveform_S) - WIN_LENGTH) // HOP_LENGTH + 1
        places = np.arange(count)[:, None] * HOP_LENGTH + np.arange(WIN_LENGTH)
        angles = 2 * np.pi * np.arange(WIN_LENGTH)[:, None] * np.arange(N_FFT // 2 + 1) / N_FFT
        hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WIN_LENGTH) / WIN_LENGTH))[:, None]
        frames = waveform_S.double()[torch.from_numpy(places)]
        real, imaginary = (frames @ torch.from_numpy(hann * part(angles)) for part in (np.cos, np.sin))
        mel = (real.square() + imaginary.square()).sqrt() @ mel_filter_bank()
        return torch.log(mel + LOG_OFFSET).float().reshape(count, N_MELS)
