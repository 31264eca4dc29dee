"""One recipe on any number of ranks: the same losses, metrics and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qdformer.config.train import Train
from qdformer.training.loop import TIMES
from tests.helpers.distributed import on_ranks, recipe_with, train, write_clips
from tests.helpers.model import LOSS

Results = dict[str, dict[str, Any]]

pytestmark = pytest.mark.timeout(900)  # processes that import torch, on a machine that may be busy

RECIPES = {
    "default": recipe_with(epochs=2),
    "batch norm, running means, dead codes": recipe_with(
        {"recombination_norm": "batch", "codebook": "ema", "reset_dead_codes_after": 2, "quantize_after": 0.0},
        epochs=2,
        loss=LOSS.model_copy(update={"quantize_reduction": "sum"}),
    ),
}
SWIN = {"stochastic depth": recipe_with({"backbone": "swin_tiny", "frozen_stages": 0}, epochs=1)}


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data") / "dataset")


def train_all(root: Path, recipes: dict[str, Train]) -> Results:
    """History and weights of each recipe."""
    results = {}
    for name, recipe in recipes.items():
        state = train(recipe, root)
        history = [{key: value for key, value in row.items() if key not in TIMES} for row in state.history]
        results[name] = {"history": history, "weights": state.model.state_dict()}
    return results


@pytest.fixture(scope="module")
def results(clips) -> dict[int, list[Results]]:
    """The results of every rank, by the number of ranks."""
    return {ranks: on_ranks(ranks, train_all, clips, RECIPES) for ranks in (1, 2, 3)}


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_train_the_model_that_one_process_trains(results, ranks, name):
    """Nine clips in batches of four: three ranks divide them unevenly, and in the last step only one has a clip."""
    check_equal(results[1][0], results[ranks], name)


@pytest.mark.slow
def test_stochastic_depth_is_the_same_on_several_ranks(clips):
    (alone,), several = on_ranks(1, train_all, clips, SWIN), on_ranks(2, train_all, clips, SWIN)
    check_equal(alone, several, "stochastic depth")


def check_equal(alone: Results, several: list[Results], name: str) -> None:
    for part in several:
        assert len(part[name]["history"]) == len(alone[name]["history"])
        for row, expected in zip(part[name]["history"], alone[name]["history"], strict=True):
            assert row == pytest.approx(expected, rel=2e-3, abs=2e-4)
        for key, weights in several[0][name]["weights"].items():
            assert torch.equal(part[name]["weights"][key], weights), f"ranks have different {key}"
            expected = alone[name]["weights"][key]
            torch.testing.assert_close(weights.float(), expected.float(), rtol=0.02, atol=2e-3, msg=key)
