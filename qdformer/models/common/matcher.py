"""Hungarian matching of queries to targets, one assignment per clip.

Shapes: E problems (clips of each decoder layer), N queries, G targets.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment


def match(cost_ENG: torch.Tensor, targets_E: list[int]) -> torch.Tensor:
    """The one-to-one assignment with the lowest cost for each problem, of which the first `targets_E[e]` targets are
    real.

    -> index of the target of each query, -1 for none: [E, N] int64 on the CPU. If there are fewer queries than targets,
    some targets have no query. Raises `FloatingPointError` for costs that are not finite.
    """
    costs = cost_ENG.detach().float().cpu().numpy()
    if not np.isfinite(costs).all():
        raise FloatingPointError("matching costs are not finite: the model's output holds NaN or infinity")
    target_EN = np.full(costs.shape[:2], -1)
    for row, cost, count in zip(target_EN, costs, targets_E, strict=True):
        queries, targets = linear_sum_assignment(cost[:, :count])
        row[queries] = targets
    return torch.from_numpy(target_EN)
