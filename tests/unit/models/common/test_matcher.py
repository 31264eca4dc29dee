"""Hungarian matching compared with brute force."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from qdformer.models.common.matcher import match


@pytest.mark.parametrize("targets", [0, 1, 2, 3])
def test_equals_brute_force(targets):
    cost = torch.rand(20, 4, 3, generator=torch.Generator().manual_seed(targets))
    matched = match(cost, [targets] * 20)
    for problem, queries in zip(cost, matched, strict=True):
        best = min(
            sum(float(problem[q, g]) for g, q in enumerate(chosen)) for chosen in permutations(range(4), targets)
        )
        found = sum(float(problem[q, g]) for q, g in enumerate(queries.tolist()) if g >= 0)
        assert found == pytest.approx(best)
        assert sorted(g for g in queries.tolist() if g >= 0) == list(range(targets))


def test_padded_targets_are_left_out():
    cost = torch.zeros(2, 3, 2)
    cost[:, :, 1] = -100
    assert (match(cost, [1, 0]) >= 0).sum(1).tolist() == [1, 0]


def test_more_targets_than_queries():
    cost = torch.tensor([[[3.0, 1.0, 2.0], [1.0, 5.0, 9.0]]])
    assert match(cost, [3]).tolist() == [[1, 0]]


def test_costs_that_are_not_finite_are_refused():
    with pytest.raises(FloatingPointError, match="not finite"):
        match(torch.full((1, 2, 1), float("nan")), [1])
