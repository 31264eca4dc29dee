"""The whole path from frames and sound to masks as one graph: for ONNX runtimes, and for `torch.export`.

Shapes: T frames (one per second), H W pixels, C object classes, S = 16000 T samples, F = 96 frames of 10 ms in a patch.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from qdformer.audio.vggish.log_mel import (
    HOP_LENGTH,
    LOG_OFFSET,
    N_FFT,
    N_MELS,
    PATCH_FRAMES,
    WIN_LENGTH,
    mel_filter_bank,
)
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from qdformer.inference.predictor import Predictor

FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
CENTERED_START = (FRAMES_PER_SECOND - PATCH_FRAMES) // 2
"""First frame of a patch that is centered on its second, as `centered_patches` cuts it."""

INPUTS, OUTPUTS = ("frames", "waveform"), ("semantic", "foreground", "class_probs")
TOLERANCE = 1e-4
"""Largest difference of a probability between an exported graph and the model."""
PIXEL_TOLERANCE = 1e-3
"""Largest share of the pixels whose class differs: two classes can be equally probable up to rounding."""


class ExportError(InputError):
    """The model cannot be exported, or the exported graph computes something else."""


class EndToEnd(nn.Module):
    """Log-mel spectrogram, VGGish and the model in one module of fixed sizes.

    Takes frames uint8 [T, 3, H, W] with values 0..255 and the sound of the same T seconds at 16 kHz, float32 [S] in
    -1..1; returns the class of each pixel int64 [T, H, W], the probability of a sounding object [T, H, W] and the
    probability of each class [T, C]. It computes what `Predictor` does for frames of the model's input size. The
    Fourier transform is a product with its matrix in float64, because exporters do not support it.
    """

    basis_WK: torch.Tensor
    filters_KM: torch.Tensor
    samples_FW: torch.Tensor

    def __init__(self, predictor: Predictor, frames: int) -> None:
        super().__init__()
        embedder = predictor.embedder
        self.model, self.vggish, self.pca = predictor.model, embedder.vggish, embedder.pca
        angles_WK = torch.arange(WIN_LENGTH).double()[:, None] * torch.arange(N_FFT // 2 + 1) * (2 * math.pi / N_FFT)
        window_W1 = torch.hann_window(WIN_LENGTH, periodic=True, dtype=torch.float64)[:, None]
        spectrogram_frames = (SAMPLE_RATE * frames - WIN_LENGTH) // HOP_LENGTH + 1
        step, first = (FRAMES_PER_SECOND, CENTERED_START) if embedder.center else (PATCH_FRAMES, 0)
        shown_PF = first + step * torch.arange(frames)[:, None] + torch.arange(PATCH_FRAMES)
        starts_F = shown_PF.clamp(max=spectrogram_frames - 1).flatten() * HOP_LENGTH
        self.register_buffer("basis_WK", torch.cat([window_W1 * angles_WK.cos(), window_W1 * angles_WK.sin()], 1))
        self.register_buffer("filters_KM", mel_filter_bank())
        self.register_buffer("samples_FW", starts_F[:, None] + torch.arange(WIN_LENGTH))

    def forward(
        self, frames_T3HW: torch.Tensor, waveform_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        real_FK, imaginary_FK = (waveform_S.double()[self.samples_FW] @ self.basis_WK).chunk(2, dim=-1)
        mel_FM = (real_FK.square() + imaginary_FK.square()).sqrt() @ self.filters_KM
        embeddings_TA = self.vggish(torch.log(mel_FM + LOG_OFFSET).float().reshape(-1, 1, PATCH_FRAMES, N_MELS))
        if self.pca is not None:
            embeddings_TA = self.pca(embeddings_TA)
        prediction = self.model.predict(frames_T3HW[None], embeddings_TA[None])
        return prediction.semantic_BTHW[0], prediction.foreground_BTHW[0], prediction.class_probs_BTC[0]


@dataclass(frozen=True)
class ExportedFile:
    """An exported graph with its size, its time per clip, and its differences from the model on random input."""

    path: Path
    bytes: int
    seconds: float
    probability_difference: float
    """Largest difference of a probability."""
    pixel_difference: float
    """Share of the pixels with another class."""


def export(predictor: Predictor, frames: int, folder: Path) -> tuple[list[ExportedFile], float]:
    """Write `model.pt2` (torch.export) and `model.onnx` for clips of `frames` seconds and compare both with the model.

    Frames have `image_size` x `image_size` pixels, rounded up to a multiple of 32. Returns the files, and the model's
    own seconds per clip on the same CPU threads.

    Raises:
        ExportError: the results of a file differ by more than `TOLERANCE` or `PIXEL_TOLERANCE`.
    """
    import onnxruntime

    size = -(-predictor.image_size // 32) * 32
    module = EndToEnd(predictor, frames).eval()
    generator = torch.Generator().manual_seed(0)
    example = (
        torch.randint(0, 256, (frames, 3, size, size), dtype=torch.uint8, generator=generator),
        torch.rand(frames * SAMPLE_RATE, generator=generator) - 0.5,
    )
    folder.mkdir(parents=True, exist_ok=True)
    program_path, onnx_path = folder / "model.pt2", folder / "model.onnx"
    for exporter in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(exporter).setLevel(logging.ERROR)  # their warnings are about their own code
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, example)
        torch.export.save(program, program_path)
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=INPUTS, output_names=OUTPUTS, opset_version=18, verbose=False
        )
        assert onnx is not None
        onnx.save(onnx_path)

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(onnx_path, options, providers=["CPUExecutionProvider"])
    loaded = torch.export.load(program_path).module()
    inputs = dict(zip(INPUTS, (tensor.numpy() for tensor in example), strict=True))

    with torch.no_grad():
        expected, own_seconds = _timed(lambda: module(*example))
        files = [
            _compare(program_path, expected, *_timed(lambda: loaded(*example))),
            _compare(onnx_path, expected, *_timed(lambda: session.run(None, inputs))),
        ]
    return files, own_seconds


def _timed(run: Callable[[], Sequence[torch.Tensor | np.ndarray]]) -> tuple[list[np.ndarray], float]:
    """The result as arrays, and the median seconds of three runs after a first one."""
    results, seconds = run(), []
    for _ in range(3):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return [np.asarray(result) for result in results], sorted(seconds)[1]


def _compare(path: Path, expected: list[np.ndarray], found: list[np.ndarray], seconds: float) -> ExportedFile:
    pixels = float((found[0] != expected[0]).mean())
    probability = float(np.max([np.abs(a - b).max() for a, b in zip(found[1:], expected[1:], strict=True)]))
    if not (probability <= TOLERANCE and pixels <= PIXEL_TOLERANCE):
        raise ExportError(
            f"{path}: differs from the model by {probability:.2g} in a probability and in {pixels:.2%} of the pixels; "
            f"expected at most {TOLERANCE:g} and {PIXEL_TOLERANCE:.1%}"
        )
    return ExportedFile(path, path.stat().st_size, seconds, probability, pixels)
