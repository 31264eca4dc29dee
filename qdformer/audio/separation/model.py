"""The separator: torchaudio's Conv-TasNet between two level adjustments, and its file.

Shapes: B mixtures, V tracks, S samples.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import nn

from qdformer.audio.io.resample import resample
from qdformer.audio.vggish.model import WeightsError
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.digests import file_sha256
from qdformer.utils.files import write_bytes

METADATA = "separator"
_EPSILON = 1e-8


@dataclass(frozen=True)
class SeparatorConfig:
    """How a separator is built.

    `network`: arguments of `torchaudio.models.ConvTasNet`, `num_sources` among them. `sample_rate`: of the network; the
    sounds of 16 kHz are resampled for it. `rectify`: its encoder ends with a ReLU, which Luo and Mesgarani leave open
    and torchaudio does not have. `rescale`: the network's tracks have no defined level, as after training by SI-SDR
    alone, and get the levels with which their sum is closest to the mixture.
    """

    network: dict[str, Any]
    sample_rate: int = SAMPLE_RATE
    rectify: bool = False
    rescale: bool = False


class Separator(nn.Module):
    """Separates mixtures [B, S] into tracks [B, V, S], whose sum is the mixture.

    The network sees mixtures of RMS 1. What its tracks lack of the mixture is divided equally among them (mixture
    consistency, Wisdom et al., 2019), so that training by SI-SDR defines the level of the tracks too.
    """

    def __init__(self, config: SeparatorConfig) -> None:
        from torchaudio.models import ConvTasNet  # its import takes seconds

        super().__init__()
        self.config = config
        self.network = ConvTasNet(**config.network)
        if config.rectify:
            self.network.encoder.register_forward_hook(lambda _module, _inputs, output: torch.relu(output))

    @property
    def num_sources(self) -> int:
        """V."""
        return self.config.network["num_sources"]

    def forward(self, mixture_BS: torch.Tensor) -> torch.Tensor:
        """Mixtures at the network's sample rate -> tracks [B, V, S]."""
        level_B1 = mixture_BS.square().mean(-1, keepdim=True).sqrt() + _EPSILON
        input_BS = mixture_BS / level_B1
        tracks_BVS = self.network(input_BS[:, None])
        if self.config.rescale:
            tracks_BVS = _rescaled(tracks_BVS, input_BS)
        missing_BS = input_BS - tracks_BVS.sum(1)
        return (tracks_BVS + missing_BS[:, None] / self.num_sources) * level_B1[:, None]

    @torch.no_grad()
    def initialize_filters(self) -> None:
        """Let training start from a filter bank: encoder and decoder are cosines and sines under a window, each with
        both signs, whose rectified outputs are inverted exactly if there are twice as many as samples in a window.

        Random filters of this length learn slowly (Pariente et al., 2020, "Filterbank design for end-to-end speech
        separation").
        """
        filters, _, window = self.network.encoder.weight.shape
        frequency_F1 = (torch.arange(filters // 4)[:, None] + 0.5) * (2 * window / filters)
        phase_FW = 2 * math.pi * frequency_F1 * (torch.arange(window) + 0.5) / window
        waves = torch.cat([phase_FW.cos(), phase_FW.sin()]) * torch.hann_window(window).sqrt() * math.sqrt(2 / window)
        for layer in (self.network.encoder, self.network.decoder):
            layer.weight.copy_(torch.cat([waves, -waves])[:, None])

    @torch.inference_mode()
    def separate(self, audio_S: np.ndarray) -> np.ndarray:
        """One sound of 16 kHz, float32 [S] -> its tracks, float32 [V, S]."""
        rate = self.config.sample_rate
        mixture_S = audio_S if rate == SAMPLE_RATE else resample(audio_S, SAMPLE_RATE, rate)
        tracks_VS = self(torch.from_numpy(np.ascontiguousarray(mixture_S, np.float32))[None])[0].numpy()
        if rate == SAMPLE_RATE:
            return tracks_VS
        wide_VS = resample(tracks_VS.T, rate, SAMPLE_RATE).T[:, : len(audio_S)]
        return np.pad(wide_VS, ((0, 0), (0, len(audio_S) - wide_VS.shape[1])))


def _rescaled(tracks_BVS: torch.Tensor, mixture_BS: torch.Tensor) -> torch.Tensor:
    """The tracks times the factors that minimize the squared distance of their sum to the mixture."""
    gram_BVV = tracks_BVS @ tracks_BVS.mT
    gram_BVV = gram_BVV + _EPSILON * torch.eye(gram_BVV.shape[-1])
    factors_BV1 = torch.linalg.solve(gram_BVV, tracks_BVS @ mixture_BS[..., None])
    return tracks_BVS * factors_BV1


def save_separator(separator: Separator, path: Path) -> str:
    """Write the weights as safetensors, with what `load_separator` needs; return the SHA-256 of the file."""
    from safetensors.torch import save

    weights = {name: value.contiguous() for name, value in separator.network.state_dict().items()}
    write_bytes(path, save(weights, {METADATA: json.dumps(asdict(separator.config))}))
    return file_sha256(path)


def load_separator(path: Path, sha256: str | None = None) -> Separator:
    """Read what `save_separator` wrote, in evaluation mode.

    Raises `WeightsError` if the file is missing or damaged, or its SHA-256 does not begin with `sha256`.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"{path}: no such separator; the stage separate writes it")
    if sha256 is not None and not (found := file_sha256(path)).startswith(sha256):
        raise WeightsError(f"{path}: SHA-256 is {found}, expected {sha256}")
    try:
        with safetensors.safe_open(path, "pt") as file:
            config = SeparatorConfig(**json.loads((file.metadata() or {})[METADATA]))
        separator = Separator(config)
        separator.network.load_state_dict(load_file(path))
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(f"{path}: not a usable separator: {error}") from None
    return separator.eval().requires_grad_(False)
