"""Train a separator on mixtures of the training split's single sounds, and measure it on new mixtures.

Shapes: B mixtures, V tracks, S samples.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm import tqdm

from qdformer.audio.separation.loss import separation_loss, si_sdr_improvement
from qdformer.audio.separation.mixtures import Mixtures
from qdformer.audio.separation.model import Separator, SeparatorConfig
from qdformer.audio.vggish.mixtures import SoundSplit, load_sounds
from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.digests import file_sha256, short_digest
from qdformer.utils.files import new_file

if TYPE_CHECKING:
    from qdformer.config.separate import Separate

WARMUP_STEPS = 50
MAX_GRAD_NORM = 5.0
WEIGHT_DECAY = 1e-4
SAVE_EVERY = 50
"""Steps between two saved states."""
MEASURED_MIXTURES, MEASURED_BATCH = 128, 8
STATE = "separate.pt"


def train_separator(
    sounds_root: Path, settings: Separate, cache: Path, progress: bool = True
) -> tuple[Separator, dict[str, Any], list[float]]:
    """Train for `settings.steps` steps; an interrupted training continues from the state in the folder `cache`.

    The same settings, sounds and kind of machine give the same weights, interrupted or not. Returns the separator in
    evaluation mode, a record of plain values that describes it, and the loss of every step.

    Args:
        sounds_root: folder of `sounds.csv`, with the split train and, to measure unseen recordings, val.
        settings: the section `separate`.
        cache: where the state is kept; it is of no use for other settings or sounds.
        progress: show a progress bar.

    Raises `AudioError` if the sounds are not usable.
    """
    sounds = load_sounds(sounds_root, "train")
    samples = round(settings.seconds * SAMPLE_RATE)
    torch.manual_seed(settings.seed)
    network = settings.network.model_dump() | {"num_sources": settings.sources}
    separator = Separator(SeparatorConfig(network, rectify=True))
    separator.initialize_filters()
    mixtures = Mixtures(sounds, settings.sources, samples, settings.seed, varied=True)
    state = _State(separator, settings, cache / STATE, file_sha256(sounds_root / "sounds.csv"))
    bar = tqdm(
        total=settings.steps, initial=len(state.losses), desc="train separator", disable=None if progress else True
    )
    with bar:
        for step in range(len(state.losses), settings.steps):
            mixture_BS, targets_BVS = mixtures.batch(step, settings.batch_size)
            state.step(mixture_BS, targets_BVS)
            bar.set_postfix(loss=f"{state.losses[-1]:.2f} dB", refresh=False)
            bar.update()
            if (step + 1) % SAVE_EVERY == 0:
                state.save()
    separator.eval().requires_grad_(False)
    last = state.losses[-max(1, settings.steps // 10) :]
    record = {
        "weights": "trained_here",
        "how": f"Conv-TasNet trained here on mixtures of up to {settings.sources} single sounds of the training split",
        "recordings": sum(len(recordings) for recordings in sounds.sources),
        "noises": len(sounds.noises),
        "sources": settings.sources,
        "parameters": sum(parameter.numel() for parameter in separator.parameters()),
        "steps": settings.steps,
        "mixture_hours": round(settings.steps * settings.batch_size * settings.seconds / 3600, 2),
        "loss": round(sum(last) / len(last), 3),
    }
    return separator, record | measure_separator(separator, sounds_root, sounds, settings.seed + 1), state.losses


def measure_separator(separator: Separator, sounds_root: Path, seen: SoundSplit, seed: int) -> dict[str, float | None]:
    """Mean SI-SDR and its improvement over the mixture (SI-SDRi) in dB, for new mixtures of as many sources as tracks.

    `seen`: mixtures of training recordings; `unseen`: of the recordings of the validation split alone, None if it has
    too few classes for a mixture. All sources have different classes.
    """
    unseen = load_sounds(sounds_root, "val", seen.classes)
    metrics: dict[str, float | None] = {}
    samples = 2 * SAMPLE_RATE
    for name, sounds in {"seen": seen, "unseen": unseen}.items():
        if sum(map(bool, sounds.sources)) < separator.num_sources:
            metrics |= {f"si_sdr_{name}_db": None, f"si_sdri_{name}_db": None}
            continue
        mixtures = Mixtures(sounds, separator.num_sources, samples, seed, varied=False)
        results = []
        for number in range(MEASURED_MIXTURES // MEASURED_BATCH):
            mixture_BS, targets_BVS = mixtures.batch(number, MEASURED_BATCH)
            tracks_VS = [torch.from_numpy(separator.separate(mixture_S.numpy())) for mixture_S in mixture_BS]
            results.append(torch.stack(si_sdr_improvement(torch.stack(tracks_VS), targets_BVS, mixture_BS)))
        value, improvement = torch.cat(results, dim=1).mean((1, 2)).tolist()
        metrics |= {f"si_sdr_{name}_db": round(value, 3), f"si_sdri_{name}_db": round(improvement, 3)}
    return metrics


class _State:
    """The separator in training, its optimizer and the loss of every step so far."""

    def __init__(self, separator: Separator, settings: Separate, path: Path, sounds_sha256: str) -> None:
        self.separator, self.settings, self.path = separator.train(), settings, path
        self.optimizer = torch.optim.AdamW(
            separator.parameters(), settings.learning_rate, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.losses: list[float] = []
        self.identity = short_digest([settings.model_dump_json(), sounds_sha256])
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            saved = {}  # an incomplete copy; states are written atomically
        if saved.get("identity") == self.identity:
            separator.load_state_dict(saved["separator"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.losses = saved["losses"]

    def step(self, mixture_BS: torch.Tensor, targets_BVS: torch.Tensor) -> None:
        """One step of the optimizer: linear warm-up, then a half cosine that falls to zero."""
        done = len(self.losses)
        factor = min(1.0, (done + 1) / WARMUP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * done / self.settings.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * factor
        loss = separation_loss(self.separator(mixture_BS), targets_BVS, mixture_BS)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.separator.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.losses.append(round(loss.item(), 4))

    def save(self) -> None:
        state = {
            "identity": self.identity,
            "separator": self.separator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
        }
        with new_file(self.path) as partial:
            torch.save(state, partial)
