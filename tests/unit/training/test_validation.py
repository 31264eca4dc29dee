"""Measuring a model on the split val while it is trained, and choosing the epoch that is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from qdformer.config.settings import SettingsError, load_settings, parse_settings
from qdformer.data.dataset import AVSDataset, build_loader
from qdformer.data.manifest import read_manifest
from qdformer.metrics import semantic
from qdformer.models.registry import build_model
from qdformer.training.loop import is_finished
from qdformer.training.validation import SCORE, is_selected, validate
from qdformer.utils.distributed import rank, world_size
from tests.helpers import PROJECT
from tests.helpers.distributed import CPU, NAMES, Sounds, on_ranks, recipe_with, train, write_clips

RECIPE = recipe_with(epochs=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_clips(tmp_path_factory.mktemp("data") / "dataset")


def untrained(root: Path) -> tuple[Any, Any, Any]:
    """An untrained model, its criterion, and a loader of this rank's clips."""
    torch.manual_seed(1)
    model = build_model(RECIPE.model, len(NAMES))
    data = AVSDataset(read_manifest(root), Sounds(), RECIPE.image_size)
    loader = build_loader(data, RECIPE.batch_size, rank=rank(), world_size=world_size())
    return model, model.build_criterion(RECIPE.loss), loader


def validated(root: Path) -> dict[str, float]:
    model, criterion, loader = untrained(root)
    return validate(model, criterion, loader, CPU)


def test_the_scores_are_those_of_the_published_protocol(clips):
    model, criterion, loader = untrained(clips)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scores = validate(model, criterion, loader, CPU)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    predicted, truth, losses = [], [], []
    model.eval()
    with torch.no_grad():
        for batch in loader:
            prediction = model.predict(batch.images_BTCHW, batch.audio_BTA, batch.valid_BT)
            predicted.append(prediction.semantic_BTHW[batch.valid_BT].flatten())
            truth.append(batch.labels_BTHW[batch.valid_BT].flatten())
            losses.append(criterion(prediction.output, batch.labels_BTHW, batch.valid_BT, batch.labeled_BT)["total"])
    pixels = (torch.cat(part)[None, None] for part in (predicted, truth))
    expected = semantic.dataset_level(*pixels, num_classes=len(NAMES) + 1).miou
    assert 0 < expected < 1 and scores["val_miou_dataset"] == pytest.approx(expected)
    assert scores["val_total"] == pytest.approx(float(torch.stack(losses).mean()))


@pytest.mark.slow
def test_several_ranks_give_the_scores_of_one(clips):
    alone = validated(clips)
    for part in on_ranks(3, validated, clips):
        assert part == pytest.approx(alone, rel=1e-4)


def test_a_validation_does_not_change_the_training(clips):
    recipe = recipe_with(epochs=2)
    plain = train(recipe, clips)
    model, criterion, loader = untrained(clips)
    measured = train(recipe, clips, on_epoch=lambda state: validate(state.model, criterion, loader, CPU))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, measured.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("scores", "select", "expected"),
    [
        ([0.2, 0.3], "best", True),
        ([0.3, 0.2], "best", False),
        ([0.3, 0.3], "best", False),  # the earlier one
        ([0.3, 0.2], "last", True),
        ([0.3, None], "best", False),
        ([None, 0.1], "best", True),
        ([None], "best", True),
    ],
)
def test_the_best_epoch_is_the_earliest_with_the_highest_score(scores, select, expected):
    rows = [
        {"epoch": epoch} | ({} if score is None else {"val_miou_dataset": score})
        for epoch, score in enumerate(scores, 1)
    ]
    assert is_selected(rows, select) == expected


def test_no_epoch_begins_that_would_end_after_the_limit():
    history = [{"epoch": 1, "seconds": 20.0}, {"epoch": 2, "seconds": 30.0}]  # the next one takes 25 s
    recipe = recipe_with(epochs=3)
    assert not is_finished(history, recipe) and is_finished([*history, history[0]], recipe)
    assert not is_finished(history, recipe.model_copy(update={"max_minutes": 76 / 60}))
    assert is_finished(history, recipe.model_copy(update={"max_minutes": 74 / 60}))
    assert not is_finished([], recipe.model_copy(update={"max_minutes": 0.001})), "one epoch is always trained"


def test_the_training_ends_when_val_does_not_improve():
    recipe = recipe_with(epochs=9, validate_every=1, patience=2)
    history = [{SCORE: score} for score in (0.1, 0.3, 0.2, 0.3)]
    assert not is_finished(history[:3], recipe) and is_finished(history, recipe)
    assert not is_finished([*history[:3], {SCORE: 0.4}], recipe)
    assert not is_finished([history[1], {}, {}, {}], recipe), "epochs without a measurement do not count"


def test_a_choice_by_val_needs_a_validation():
    values = load_settings(PROJECT / "params.yaml").model_dump()
    values["train"] |= {"patience": 2}
    with pytest.raises(SettingsError, match="train: patience needs a validation; expected validate_every above 0"):
        parse_settings(values)
    values["train"]["patience"] = None
    values["train"] |= {"select": "best"}
    with pytest.raises(SettingsError, match="train: select: best needs a validation; expected validate_every above 0"):
        parse_settings(values)
    values["train"]["validate_every"] = 2
    assert parse_settings(values).train.select == "best"
