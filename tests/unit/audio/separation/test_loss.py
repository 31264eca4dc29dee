"""SI-SDR against its definition, and the assignment of tracks to sources."""

from __future__ import annotations

import math

import pytest
import torch

from qdformer.audio.separation.loss import SOFT_LIMIT, separation_loss, si_sdr, si_sdr_improvement


def signals(count: int, samples: int = 400) -> torch.Tensor:
    return torch.randn(count, samples, generator=torch.Generator().manual_seed(0))


def test_si_sdr_is_the_ratio_of_the_parts_along_and_across_the_target():
    target, across = signals(2)
    across -= (across @ target) / (target @ target) * target
    estimate = 3 * target + across
    expected = 10 * math.log10(9 * float(target @ target) / float(across @ across))
    assert float(si_sdr(estimate, target)) == pytest.approx(expected, abs=1e-3)
    assert float(si_sdr(-7 * estimate, 0.1 * target)) == pytest.approx(expected, abs=1e-3)
    assert float(si_sdr(target, target, SOFT_LIMIT)) == pytest.approx(30, abs=1e-3)


def test_the_loss_does_not_depend_on_the_order_of_tracks():
    targets = signals(3)[None]
    tracks = targets + 0.1 * signals(3).flip(1)
    orders = ([0, 1, 2], [2, 0, 1], [1, 0, 2])
    losses = {round(float(separation_loss(tracks[:, order], targets, targets.sum(1))), 4) for order in orders}
    assert len(losses) == 1 and losses.pop() < -15


def test_a_track_without_a_source_is_to_be_silent():
    target = signals(1)
    targets = torch.stack([torch.zeros_like(target), target], dim=1)
    split = torch.stack([0.5 * target, 0.5 * target], dim=1)
    quiet = torch.stack([target, 0.01 * target], dim=1)
    assert float(separation_loss(quiet, targets, target)) < float(separation_loss(split, targets, target)) - 8


def test_the_gradient_reaches_every_track():
    tracks = signals(4).view(2, 2, -1).requires_grad_()
    separation_loss(tracks, signals(4).flip(0).view(2, 2, -1), signals(2)).backward()
    assert tracks.grad is not None and tracks.grad.flatten(2).any(-1).all()


def test_the_improvement_is_that_over_the_mixture_in_the_order_of_the_sources():
    targets = signals(2)[None]
    mixture = targets.sum(1)
    tracks = torch.stack([targets[:, 1] + 0.5 * targets[:, 0], targets[:, 0] + 0.1 * targets[:, 1]], dim=1)
    value, improvement = si_sdr_improvement(tracks, targets, mixture)
    assert float(value[0, 0]) == pytest.approx(20, abs=1) and float(value[0, 1]) == pytest.approx(6, abs=1)
    torch.testing.assert_close(improvement, value - si_sdr(mixture[:, None], targets))
    assert float(si_sdr_improvement(torch.stack([mixture, mixture], 1), targets, mixture)[1].abs().max()) < 1e-4
