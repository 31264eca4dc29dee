"""The training loop in plain torch: no Ray, no files, no tracking.

The result does not depend on the number of ranks (`qdformer.utils.distributed`), except for rounding: the global batch,
the losses and the random state of every step are the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdformer.training.validation import SCORE
from qdformer.utils.distributed import all_ranks, from_first_rank, rank, sum_over_ranks, world_size
from qdformer.utils.precision import autocast

if TYPE_CHECKING:
    from qdformer.config.train import Train
    from qdformer.data.dataset import Batch
    from qdformer.models import Method


TIMES = ("seconds", "data_wait", "frames_per_second")
"""The metrics of an epoch that depend on the machine: its duration, the share of it in which rank 0 waited for data,
and the frames that all ranks processed per second.
"""

_SHOWN = ("total", "cls", "mask", "dice", "codebook_perplexity")


class TrainingState:
    """What a resumed run needs: model, optimizer, learning-rate schedule, metrics of the finished epochs and of the
    epoch that has begun. The random state of a step follows from the seed and the step (`seed_step`).
    """

    def __init__(self, model: Method, recipe: Train, steps_per_epoch: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameter_groups(recipe.learning_rate, recipe.backbone_lr_mult, recipe.weight_decay), fused=True
        )
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = recipe.epochs * steps_per_epoch
        factor = learning_rate_factor(self.total_steps, recipe.warmup_steps, recipe.lr_milestones)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.history: list[dict[str, float]] = []
        self.epoch_sums: dict[str, float] = {}
        """Sums over the steps of the epoch that has begun, of this rank."""

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    @property
    def steps_done(self) -> int:
        return self.scheduler.last_epoch

    @property
    def steps_in_epoch(self) -> int:
        """Number of finished steps of the epoch that has begun."""
        return self.steps_done - self.epochs_done * self.steps_per_epoch

    def state_dict(self) -> dict[str, Any]:
        """The state for any number of ranks; every rank must call this."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "history": self.history,
            "epoch_sums": self.over_ranks(self.epoch_sums) if self.steps_in_epoch else {},
            "epoch_state": self.model.epoch_state() if self.steps_in_epoch else {},
        }

    def over_ranks(self, sums: dict[str, float]) -> dict[str, float]:
        """The sums of all ranks. Rank 0 has every name."""
        names, device = from_first_rank(list(sums)), next(self.model.parameters()).device
        values = torch.tensor([sums.get(name, 0.0) for name in names], dtype=torch.float64, device=device)
        return dict(zip(names, sum_over_ranks(values).tolist(), strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = list(state["history"])
        self.epoch_sums = {name: value * (rank() == 0) for name, value in state["epoch_sums"].items()}
        if self.steps_in_epoch:
            self.model.load_epoch_state(state["epoch_state"])


def learning_rate_factor(steps: int, warmup_steps: int, lr_milestones: list[float]) -> Callable[[int], float]:
    """Linear warm-up, then a tenfold drop at each share of `steps` in `lr_milestones`."""

    def factor(step: int) -> float:
        warmup = min(1.0, (step + 1) / (warmup_steps + 1))
        return warmup * 0.1 ** sum(step >= share * steps for share in lr_milestones)

    return factor


def seed_step(seed: int, step: int) -> None:
    """Set torch's random state for one step, so that it depends neither on earlier steps nor on the rank."""
    torch.manual_seed(seed << 32 | step)


def train_epoch(
    state: TrainingState,
    network: nn.Module,
    criterion: nn.Module,
    batches: Iterable[Batch],
    recipe: Train,
    device: torch.device,
    on_step: Callable[[], bool] = lambda: False,
) -> dict[str, float] | None:
    """Train to the end of the epoch that has begun, or of a new one.

    Appends the mean losses over the steps, gradient norm and the method's own metrics to `state.history` and returns
    them with `TIMES`. `network` is the model or its distributed wrapper, and `batches` are the rest of the epoch. If
    `on_step`, called after each step but the last, returns true, the training stops there and None is returned.

    Raises `FloatingPointError` for a loss or gradient norm that is not finite and `MemoryError` for a batch that does
    not fit into memory, both before the weights are changed.
    """
    network.train()
    if not state.steps_in_epoch:
        state.model.on_epoch_start()
        state.epoch_sums = {}
    sums, clock = state.epoch_sums, time.monotonic()

    def add(name: str, value: float) -> None:
        sums[name] = sums.get(name, 0.0) + value

    for batch in batches:
        ready = time.monotonic()
        seed_step(recipe.seed, state.steps_done)
        losses = _train_step(state, network, criterion, batch.to(device), recipe)
        for name, value in losses.items():
            add(name, value)
        add("frames", int(batch.valid_BT.sum()))
        if rank() == 0:
            now = time.monotonic()
            add("waiting", ready - clock)
            add("seconds", now - clock)
            clock = now
        if state.steps_in_epoch < state.steps_per_epoch and on_step():
            return None
    metrics = state.over_ranks(sums)
    seconds, waiting, frames = metrics.pop("seconds"), metrics.pop("waiting"), metrics.pop("frames")
    metrics = {name: value / state.steps_per_epoch for name, value in metrics.items()}
    metrics |= state.model.on_epoch_end(state.steps_done, state.total_steps)
    metrics["learning_rate"] = state.optimizer.param_groups[0]["lr"]
    metrics |= dict(zip(TIMES, (seconds, waiting / seconds, frames / seconds), strict=True))
    state.epoch_sums = {}
    state.history.append({"epoch": state.epochs_done + 1, **metrics})
    return state.history[-1]


def is_finished(history: Sequence[Mapping[str, float]], recipe: Train) -> bool:
    """Whether all epochs are done, `val` has not improved for `patience` measurements, or the next epoch would end
    after `max_minutes`.
    """
    if len(history) >= recipe.epochs:
        return True
    scores = [row[SCORE] for row in history if SCORE in row]
    if recipe.patience is not None and scores and len(scores) - 1 - scores.index(max(scores)) >= recipe.patience:
        return True
    if recipe.max_minutes is None or not history:
        return False
    seconds = sum(row["seconds"] for row in history)
    return seconds + seconds / len(history) > 60 * recipe.max_minutes


def describe_epoch(metrics: Mapping[str, float], epochs: int) -> str:
    """One line about a finished epoch, with the expected duration of the remaining ones."""
    losses = ", ".join(f"{name} {metrics[name]:.3g}" for name in _SHOWN if name in metrics)
    if "val_miou_dataset" in metrics:
        losses += f", mIoU on val {metrics['val_miou_dataset']:.3f}"
    minutes = metrics["seconds"] * (epochs - metrics["epoch"]) / 60
    return (
        f"epoch {metrics['epoch']:.0f}/{epochs}: {losses}; {metrics['frames_per_second']:.0f} frames/s, "
        f"{metrics['data_wait']:.0%} waiting for data; {minutes:.1f} min left"
    )


def _train_step(
    state: TrainingState, network: nn.Module, criterion: nn.Module, batch: Batch, recipe: Train
) -> dict[str, float]:
    """Take one step of the optimizer; return this rank's share of the losses and of the gradient norm."""
    where = f"epoch {state.epochs_done + 1}, step {state.steps_in_epoch + 1}"
    device = batch.images_BTCHW.device
    try:
        with autocast(device.type, recipe.precision):
            output = network(batch.images_BTCHW, batch.audio_BTA, batch.valid_BT, batch.maps)
        losses = criterion(output, batch.labels_BTHW, batch.valid_BT, batch.labeled_BT)
        state.optimizer.zero_grad(set_to_none=True)
        # The distributed wrapper averages the gradients over the ranks; that of the global batch is their sum.
        (losses["total"] * world_size()).backward()
        norm = nn.utils.clip_grad_norm_(network.parameters(), recipe.max_grad_norm)
    except FloatingPointError as error:
        raise FloatingPointError(f"{error} ({where}, clips {', '.join(batch.uids)})") from None
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        B, T, _, H, W = batch.images_BTCHW.shape
        raise MemoryError(
            f"out of memory at {where}: {B} clips of {T} frames of {W} x {H} pixels ({', '.join(batch.uids)}); lower "
            "train.batch_size, train.image_size or train.model.hidden_dim, or set QDFORMER_WORKERS to more workers"
        ) from None
    if not torch.isfinite(norm):
        raise _not_finite(losses, float(norm), batch.uids, where)
    state.optimizer.step()
    state.scheduler.step()
    state.model.on_step_end(output, state.steps_done, state.total_steps)
    names = [*losses, "gradient_norm"]
    values = torch.stack(
        [*(value.detach().float() for value in losses.values()), norm / world_size()]
    )  # fetched at once
    return dict(zip(names, values.tolist(), strict=True))


def _not_finite(losses: dict[str, torch.Tensor], norm: float, uids: list[str], where: str) -> FloatingPointError:
    """The error of all ranks, with the clips of those whose losses are not finite, or of all ranks."""
    mine = {name: float(value) for name, value in losses.items()}
    found = all_ranks((uids, {name: value for name, value in mine.items() if not math.isfinite(value)}))
    bad = [item for item in found if item[1]] or found
    named = {f"{name} is {value}" for _, values in bad for name, value in values.items()}
    clips = [uid for batch, _ in bad for uid in batch]
    reason = ", ".join(sorted(named, key=lambda text: not text.startswith("total"))[:3]) or f"gradient norm is {norm}"
    return FloatingPointError(f"not a finite loss or gradient at {where}: {reason}; clips {', '.join(clips)}")


def _is_out_of_memory(error: RuntimeError) -> bool:
    cpu = "not enough memory" in str(error) or "can't allocate memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError) or cpu
