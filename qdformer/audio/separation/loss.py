"""The scale-invariant signal-to-distortion ratio (SI-SDR) and the permutation-invariant loss made of it.

Shapes: B mixtures, V tracks, S samples.
"""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment

SOFT_LIMIT = 1e-3
"""Errors 30 dB below the signal hardly count, so that mixtures that are easy to separate do not dominate (Wisdom et
al., 2021, "What's all the fuss about free universal sound separation data?")."""
_EPSILON = 1e-8


def si_sdr(estimate: torch.Tensor, target: torch.Tensor, limit: float = 0.0) -> torch.Tensor:
    """SI-SDR in dB along the last dimension (Le Roux et al., 2019): of `estimate`, the part along `target` to the rest.

    `limit` bounds it to -10 log10(limit) dB. The leading dimensions are broadcast.
    """
    scale = (estimate * target).sum(-1, keepdim=True) / (target.square().sum(-1, keepdim=True) + _EPSILON)
    signal = (scale * target).square().sum(-1)
    error = (estimate - scale * target).square().sum(-1)
    return 10 * torch.log10((signal + _EPSILON) / (error + limit * signal + _EPSILON))


def separation_loss(tracks_BVS: torch.Tensor, targets_BVS: torch.Tensor, mixture_BS: torch.Tensor) -> torch.Tensor:
    """The mean over mixtures and tracks for the best assignment of tracks to targets.

    A track that belongs to a source has the loss -SI-SDR. A target of zeros is no source; its track has as loss its
    power in dB relative to the mixture.
    """
    tracks_BV1S, targets_B1VS = tracks_BVS[:, :, None], targets_BVS[:, None]
    power_B11 = mixture_BS.square().sum(-1)[:, None, None] + _EPSILON
    silence_BV1 = 10 * torch.log10(tracks_BV1S.square().sum(-1) / power_B11 + SOFT_LIMIT)
    sounds_B1V = targets_B1VS.any(-1)
    costs_BVV = torch.where(sounds_B1V, -si_sdr(tracks_BV1S, targets_B1VS, SOFT_LIMIT), silence_BV1)
    return _assigned(costs_BVV).mean()


def si_sdr_improvement(
    tracks_BVS: torch.Tensor, targets_BVS: torch.Tensor, mixture_BS: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """SI-SDR of the best assignment of tracks to sources, and its improvement over the mixture itself: two [B, V].

    No target may be zeros.
    """
    after_BV = -_assigned(-si_sdr(tracks_BVS[:, :, None], targets_BVS[:, None]))
    return after_BV, after_BV - si_sdr(mixture_BS[:, None], targets_BVS)


def _assigned(costs_BVV: torch.Tensor) -> torch.Tensor:
    """The costs [B, V] of the targets, in their order, in the assignment with the lowest sum."""
    chosen = []
    for costs_VV in costs_BVV:
        track_V, target_V = linear_sum_assignment(costs_VV.detach().cpu().numpy())
        chosen.append(costs_VV[track_V, target_V][target_V.argsort()])
    return torch.stack(chosen)
