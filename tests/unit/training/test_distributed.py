"""One recipe on any number of ranks: the same losses, metrics and weights."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qdformer.config.model import parse_model_settings
from qdformer.config.train import Train
from qdformer.training.loop import TIMES
from tests.helpers.distributed import on_ranks, recipe_with, train, write_clips
from tests.helpers.model import LOSS, method_losses, method_settings

Results = dict[str, dict[str, Any]]
RanksResults = Callable[[int], list[Results]]

pytestmark = pytest.mark.timeout(900)  # processes that import torch, on a machine that may be busy

RECIPES = {
    "default": recipe_with(epochs=2),
    "batch norm, running means, dead codes": recipe_with(
        {"recombination_norm": "batch", "codebook": "ema", "reset_dead_codes_after": 2, "quantize_after": 0.0},
        epochs=2,
        loss=LOSS.model_copy(update={"quantize_reduction": "sum"}),
    ),
}
METHODS = {  # whose losses compare the clips of all ranks, or use layers of the model
    name: recipe_with(epochs=1).model_copy(update={"model": method_settings(name), "loss": method_losses(name)})
    for name in ("bigen", "lvs", "mssl")
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
        results[name] = {"history": without_times(state.history), "weights": state.model.state_dict()}
    return results


@pytest.fixture(scope="module")
def results(clips) -> RanksResults:
    """The results of every rank for a number of ranks."""
    return functools.cache(lambda ranks: on_ranks(ranks, train_all, clips, RECIPES))


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_several_ranks_train_the_model_that_one_process_trains(results, ranks, name):
    """Nine clips in batches of four: three ranks divide them unevenly, and in the last step only one has a clip."""
    check_equal(results(1)[0], results(ranks), name)


@pytest.mark.slow
def test_stochastic_depth_is_the_same_on_several_ranks(clips):
    (alone,), several = on_ranks(1, train_all, clips, SWIN), on_ranks(2, train_all, clips, SWIN)
    check_equal(alone, several, "stochastic depth")


@pytest.mark.slow
def test_other_methods_are_trained_alike_on_several_ranks(clips):
    (alone,), several = on_ranks(1, train_all, clips, METHODS), on_ranks(2, train_all, clips, METHODS)
    for name in METHODS:
        check_equal(alone, several, name)


def saved_state(root: Path, recipe: Train, stop_after: int) -> dict[str, Any]:
    return train(recipe, root, stop_after).state_dict()


def finished(root: Path, recipe: Train, state: dict[str, Any]) -> dict[str, Any]:
    resumed = train(recipe, root, state_dict=state)
    return {"history": without_times(resumed.history), "steps": resumed.steps_done}


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stop_after", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_continues_on_another_number_of_ranks(results, clips, before, after, stop_after):
    """In the middle of an epoch, before the codebook's start by k-means at step 3 of 6, and at the end of an epoch."""
    recipe = RECIPES["default"]
    state, *_ = on_ranks(before, saved_state, clips, recipe, stop_after)
    assert len(state["history"]) == (stop_after == 3)
    expected = results(1)[0]["default"]["history"]
    for part in on_ranks(after, finished, clips, recipe, state):
        assert part["steps"] == 6
        for row, whole in zip(part["history"], expected, strict=True):
            assert row == pytest.approx(whole, rel=2e-3, abs=2e-4)


def test_a_run_that_is_resumed_within_an_epoch_equals_an_uninterrupted_one(clips):
    recipe = RECIPES["default"]
    whole, state = train(recipe, clips), saved_state(clips, recipe, 2)
    assert state["epoch_state"]["token_buffer"] and state["epoch_sums"]
    resumed = train(recipe, clips, state_dict=state)
    assert without_times(resumed.history) == without_times(whole.history)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def two_steps(root: Path, recipes: dict[str, Train]) -> dict[str, float]:
    """The gradient norm of one epoch of two steps; a parameter without a gradient is an error at the second step."""
    return {name: train(recipe, root, stop_after=2).epoch_sums["gradient_norm"] for name, recipe in recipes.items()}


@pytest.mark.slow
def test_every_accepted_combination_of_switches_trains_on_two_ranks(clips):
    names = ("decompose", "quantize", "recombine", "calibrate", "separate", "share_prototypes")
    recipes = {}
    for values in itertools.product((False, True), repeat=len(names)):
        switches = dict(zip(names, values, strict=True))
        try:
            model = parse_model_settings(RECIPES["default"].model.model_dump() | switches)
        except ValueError:
            continue
        if not model.separate:  # which needs the features of separated signals
            recipes[str(switches)] = RECIPES["default"].model_copy(update={"model": model})
    assert len(recipes) >= 16
    for part in on_ranks(2, two_steps, clips, recipes):
        assert all(0 < norm < 1e6 for norm in part.values())


def without_times(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in history]


def check_equal(alone: Results, several: list[Results], name: str) -> None:
    for part in several:
        assert len(part[name]["history"]) == len(alone[name]["history"])
        for row, expected in zip(part[name]["history"], alone[name]["history"], strict=True):
            assert row == pytest.approx(expected, rel=2e-3, abs=2e-4)
        for key, weights in several[0][name]["weights"].items():
            assert torch.equal(part[name]["weights"][key], weights), f"ranks have different {key}"
            expected = alone[name]["weights"][key]
            torch.testing.assert_close(weights.float(), expected.float(), rtol=0.02, atol=2e-3, msg=key)
