"""The training loop in plain torch: no Ray, no files, no tracking."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdformer.utils.precision import autocast

if TYPE_CHECKING:
    from qdformer.config.train import Train
    from qdformer.data.dataset import Batch
    from qdformer.models import Method


class TrainingState:
    """What a resumed run needs: model, optimizer, learning-rate schedule, RNG, metrics of the finished epochs."""

    def __init__(self, model: Method, recipe: Train, steps_per_epoch: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameter_groups(recipe.learning_rate, recipe.backbone_lr_mult, recipe.weight_decay), fused=True
        )
        self.total_steps = recipe.epochs * steps_per_epoch
        factor = learning_rate_factor(self.total_steps, recipe.warmup_steps, recipe.lr_milestones)
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
    criterion: nn.Module,
    batches: Iterable[Batch],
    recipe: Train,
    device: torch.device,
) -> dict[str, float]:
    """Train for one epoch; append the mean losses and the method's own metrics to `state.history` and return them.

    `network` is the model or its distributed wrapper. Raises `FloatingPointError` for a loss that is not finite, before
    the weights are changed.
    """
    network.train()
    state.model.on_epoch_start()
    started = time.monotonic()
    sums: dict[str, float] = defaultdict(float)
    steps = 0
    for batch in batches:
        batch = batch.to(device)
        with autocast(device.type, recipe.precision):
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
        state.model.on_step_end(output, state.steps_done, state.total_steps)
        for name, value in losses.items():
            sums[name] += float(value.detach())
        sums["gradient_norm"] += float(norm)
        steps += 1
    metrics = {name: value / steps for name, value in sums.items()}
    metrics |= state.model.on_epoch_end(state.steps_done, state.total_steps)
    metrics["learning_rate"] = state.optimizer.param_groups[0]["lr"]
    metrics["seconds"] = time.monotonic() - started
    state.history.append({"epoch": state.epochs_done + 1, **metrics})
    return state.history[-1]
