"""The training loop in plain torch: no Ray, no files, no tracking."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from qdformer.config.train import Train
from qdformer.data.dataset import Batch
from qdformer.models.qdformer.criterion import Criterion
from qdformer.models.qdformer.decomposition import mean_cosine_similarity
from qdformer.models.qdformer.model import QDFormer, parameter_groups
from qdformer.models.qdformer.quantizer import perplexity


class TrainingState:
    """Everything that a resumed run needs: optimiser, schedule, epochs done and their figures."""

    def __init__(self, model: QDFormer, recipe: Train, steps_per_epoch: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            parameter_groups(model, recipe.learning_rate, recipe.backbone_lr_mult, recipe.weight_decay), fused=True
        )
        steps = recipe.epochs * steps_per_epoch
        self.quantize_from = recipe.model.quantize_after * steps
        factor = learning_rate_factor(steps, recipe.warmup_steps, recipe.lr_milestones)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.history: list[dict[str, float]] = []

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def steps_done(self) -> int:
        return self.scheduler.last_epoch

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = list(state["history"])
        torch.set_rng_state(state["rng"].cpu())


def learning_rate_factor(steps: int, warmup_steps: int, lr_milestones: list[float]) -> Callable[[int], float]:
    """Linear warm-up, then a tenfold drop at each share of `steps` in `lr_milestones`."""

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (warmup_steps + 1))
        return warmup * 0.1 ** sum(step >= share * steps for share in lr_milestones)

    return factor


def train_epoch(
    state: TrainingState,
    network: nn.Module,
    criterion: Criterion,
    batches: Iterable[Batch],
    recipe: Train,
    device: torch.device,
    progress: Callable[[Iterable[Batch]], Iterable[Batch]] = iter,
) -> dict[str, float]:
    """Train for one epoch and append its mean losses, and the use of the codebook over it, to `state.history`.

    `network` is the model, or its distributed wrapper. Raises `FloatingPointError` if the loss is
    not finite, before the weights are touched.
    """
    network.train()
    quantizer = state.model.quantizer
    if quantizer is not None:
        quantizer.clear_token_buffer()
    started = time.monotonic()
    sums: dict[str, float] = defaultdict(float)
    use: dict[str, torch.Tensor | int] = defaultdict(int)
    steps = 0
    for batch in progress(batches):
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            output = network(batch.images_BTCHW, batch.audio_BTA, batch.valid_BT)
        losses = criterion(output, batch.labels_BTHW, batch.valid_BT, batch.labeled_BT)
        total = losses["total"]
        if not torch.isfinite(total):
            raise FloatingPointError(f"loss is {total.item()} at epoch {state.epochs_done + 1}, clips {batch.uids}")
        state.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.max_grad_norm)
        state.optimizer.step()
        state.scheduler.step()
        if quantizer is not None:
            quantizer.update(output.tokens_BND, output.quantization.global_codes_BN)
            if not quantizer.started and state.steps_done >= state.quantize_from:
                quantizer.start_quantizing()
        for name, value in losses.items():
            sums[name] += float(value.detach())
        sums["gradient_norm"] += float(norm)
        if output.tokens_BND is not None:
            sums["token_similarity"] += float(mean_cosine_similarity(output.tokens_BND))
        if output.quantization is not None:
            use["codebook_perplexity"] += output.quantization.global_counts_K
            use["codebook_perplexity_local"] += output.quantization.local_counts_K
        steps += 1
    if quantizer is not None and not quantizer.started and state.steps_done >= state.quantize_from:
        quantizer.start_quantizing(force=True)  # an epoch of too few tokens to place codes by
    figures = {name: value / steps for name, value in sums.items()}
    figures |= {name: perplexity(use_K) for name, use_K in use.items()}
    figures["learning_rate"] = state.optimizer.param_groups[0]["lr"]
    figures["seconds"] = time.monotonic() - started
    state.history.append({"epoch": state.epochs_done + 1, **figures})
    return state.history[-1]
