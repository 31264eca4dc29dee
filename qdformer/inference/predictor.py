"""A trained model applied to frames and a waveform in memory.

Shapes: T frames (one per second), H W pixels, C object classes, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from qdformer.audio.features.extract import Embedder
from qdformer.audio.io.resample import resample
from qdformer.audio.vggish import load_vggish
from qdformer.data.dataset import Batch, Sample, collate, resize_geometry, resize_image
from qdformer.training.checkpoint import load_model
from qdformer.utils.constants import IGNORE_INDEX, SAMPLE_RATE

if TYPE_CHECKING:
    from qdformer.audio.features.store import ShortClips
    from qdformer.config.train import Resize
    from qdformer.data.manifest import Classes
    from qdformer.models import Method


@dataclass(frozen=True)
class ClipPrediction:
    """The prediction for one clip, at the size of its frames."""

    classes: tuple[str, ...]
    """Names of the object classes 1..C."""
    semantic_THW: np.ndarray
    """Class of each pixel, uint8: 0 background, 1..C."""
    foreground_THW: np.ndarray
    """Probability that the pixel belongs to a sounding object, float32."""
    class_probs_TC: np.ndarray
    """Probability that the class sounds and is visible in this second, float32."""


class Predictor:
    """A model with the audio encoder and the input rules that it was trained with.

    Args:
        model: in evaluation mode, on the device on which it is to run.
        classes: the object classes of its output.
        embedder: VGGish with the rules of `features` in the settings.
        image_size, resize: as in `train` of the settings. A checkpoint does not store them.
    """

    def __init__(
        self, model: Method, classes: Classes, embedder: Embedder, image_size: int = 224, resize: Resize = "longest"
    ) -> None:
        if model.settings.takes_tracks:
            raise ValueError("the model takes separated sounds (train.model.separate); expected one without separation")
        self.model, self.classes, self.embedder = model, classes, embedder
        self.image_size: int = image_size
        self.resize: Resize = resize

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: str | Path,
        vggish: str | Path,
        *,
        image_size: int = 224,
        resize: Resize = "longest",
        short_clips: ShortClips = "repeat",
        center: bool = False,
        device: torch.device | str = "cpu",
    ) -> Predictor:
        """Load a model and VGGish from the files that training wrote.

        The defaults of `image_size`, `resize` (section `train`), `short_clips` and `center` (section `features`) are
        those of `params.yaml`; a model trained with other settings needs them here. The PCA step of VGGish
        (`features.pca`) is not applied. Raises `CheckpointError` or `WeightsError` if a file cannot be used.
        """
        model, classes = load_model(Path(checkpoint))
        embedder = Embedder(load_vggish(vggish), short_clips, center, patches_per_batch=None)
        return cls(model.to(device), classes, embedder, image_size, resize)

    def predict(self, frames: np.ndarray, waveform: np.ndarray, sample_rate: int) -> ClipPrediction:
        """Segment and classify the sounding objects of one clip.

        Args:
            frames: uint8 [T, H, W, 3], RGB, one frame per second.
            waveform: the sound of the same T seconds, [S] or [S, channels] in -1..1; channels are averaged.
            sample_rate: rate of `waveform` in Hz.

        Raises:
            ValueError: an argument has another shape or type, or samples that are not finite.
        """
        batch = self.make_batch(frames, waveform, sample_rate)
        device = next(self.model.parameters()).device
        prediction = self.model.predict(batch.images_BTCHW.to(device), batch.audio_BTA.to(device))
        return ClipPrediction(
            classes=self.classes.names,
            semantic_THW=self._restore(prediction.semantic_BTHW[0], frames, labels=True).astype(np.uint8),
            foreground_THW=self._restore(prediction.foreground_BTHW[0].float(), frames, labels=False),
            class_probs_TC=prediction.class_probs_BTC[0].float().cpu().numpy(),
        )

    def make_batch(self, frames: np.ndarray, waveform: np.ndarray, sample_rate: int) -> Batch:
        """The model's input for one clip, made as in training and evaluation."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}; expected uint8 [frames, height, width, 3]"
            )
        if waveform.ndim not in (1, 2) or not np.issubdtype(waveform.dtype, np.floating) or not waveform.size:
            raise ValueError(
                f"waveform is {waveform.dtype} {list(waveform.shape)}; expected float [samples] or [samples, channels]"
            )
        if not np.isfinite(waveform).all():
            raise ValueError("waveform has samples that are NaN or infinite; expected finite samples in -1..1")
        if sample_rate != int(sample_rate) or sample_rate < 1:
            raise ValueError(f"sample_rate is {sample_rate}; expected a positive integer, in Hz")
        samples = waveform.astype(np.float32)
        if samples.ndim == 2:
            samples = samples.mean(axis=1)
        if sample_rate != SAMPLE_RATE:
            samples = resample(samples, int(sample_rate), SAMPLE_RATE)
        (features_TA,) = self.embedder.embed_waveforms([samples], [len(frames)])
        images = np.stack([resize_image(Image.fromarray(frame), self.image_size, self.resize) for frame in frames])
        sample = Sample(
            uid="",
            images_TCHW=torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
            audio_TA=torch.from_numpy(features_TA),
            labels_THW=torch.full(images.shape[:3], IGNORE_INDEX, dtype=torch.uint8),
            labeled=0,
        )
        return collate([sample])

    def _restore(self, maps_THW: torch.Tensor, frames: np.ndarray, labels: bool) -> np.ndarray:
        """Maps of the model's input size at the size of the frames: the inverse of `resize_image`.

        Values are interpolated bilinearly. A pixel has the label with the largest share among those around it, which
        gives smooth outlines. With `crop`, the pixels outside of the square are 0: background.
        """
        height, width = frames.shape[1:3]
        (scaled_width, scaled_height), (left, top) = resize_geometry((width, height), self.image_size, self.resize)
        maps = maps_THW.cpu().numpy().astype(np.int32 if labels else np.float32)
        restored = []
        for map_HW in maps:
            canvas = np.zeros((scaled_height, scaled_width), maps.dtype)
            area = canvas[top : top + self.image_size, left : left + self.image_size]
            area[:] = map_HW[: area.shape[0], : area.shape[1]]
            restored.append((_resize_labels if labels else _resize_bilinear)(canvas, (width, height)))
        return np.stack(restored)


def _resize_bilinear(map_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(map_HW).resize(size, Image.Resampling.BILINEAR))


def _resize_labels(labels_HW: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each pixel has the label with the largest interpolated share; of equal shares, the lower label."""
    best_HW: np.ndarray | None = None
    chosen_HW = np.zeros(size[::-1], labels_HW.dtype)
    for label in np.unique(labels_HW).tolist():
        share_HW = _resize_bilinear((labels_HW == label).astype(np.float32), size)
        if best_HW is None:
            best_HW, chosen_HW[:] = share_HW, label
        else:
            wins_HW = share_HW > best_HW
            chosen_HW[wins_HW] = label
            best_HW = np.maximum(best_HW, share_HW)
    return chosen_HW
