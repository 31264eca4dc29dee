"""The training loop and its checkpoints, without Ray."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from qdformer.config.renamed import RENAMED
from qdformer.config.settings import load_settings
from qdformer.data.dataset import Batch
from qdformer.data.manifest import Classes
from qdformer.models.qdformer.criterion import Criterion
from qdformer.models.qdformer.model import QDFormer
from qdformer.training.checkpoint import CheckpointError, load_model, load_state, save_model, save_state
from qdformer.training.loop import TrainingState, learning_rate_factor, train_epoch
from tests.helpers import PROJECT

RECIPE = load_settings(PROJECT / "params.yaml").train.model_copy(update={"epochs": 2})
SMALL = RECIPE.model.model_copy(
    update={
        "backbone_weights": None,
        "hidden_dim": 16,
        "num_heads": 2,
        "ffn_dim": 32,
        "codebook_size": 4,
        "num_prototypes": 2,
    }
)
CLASSES = Classes(("circle", "square"), (False, True))
CPU = torch.device("cpu")


def make_batches(count: int = 2) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(2, 2, 32, 32, dtype=torch.int64)
    labels[:, :, 8:24, 8:24] = torch.tensor([1, 2])[:, None, None, None]
    yes = torch.ones(2, 2, dtype=torch.bool)
    return [
        Batch(
            torch.randint(0, 256, (2, 2, 3, 32, 32), generator=generator, dtype=torch.uint8),
            torch.rand(2, 2, 128, generator=generator),
            labels,
            yes,
            yes,
            [f"clip{i}-0", f"clip{i}-1"],
        )
        for i in range(count)
    ]


def fresh() -> tuple[TrainingState, Criterion]:
    torch.manual_seed(0)
    model = QDFormer(SMALL, 2)
    return TrainingState(model, RECIPE, 2), model.build_criterion(RECIPE.loss)


def run(state: TrainingState, criterion: Criterion, epochs: int) -> None:
    while state.epochs_done < epochs:
        train_epoch(state, state.model, criterion, make_batches(), RECIPE, CPU)


def saved(folder: Path) -> tuple[TrainingState, Path, dict]:
    """A state, the checkpoint of its model, and the description inside of that."""
    state, _ = fresh()
    path = folder / "model.safetensors"
    save_model(path, state.model, CLASSES, SMALL)
    with safetensors.safe_open(path, "pt") as file:
        return state, path, json.loads(file.metadata()["qdformer"])


def test_learning_rate_warms_up_and_drops():
    factor = learning_rate_factor(100, warmup_steps=9, lr_milestones=[0.5, 0.8])
    assert factor(0) == pytest.approx(0.1)
    assert factor(9) == factor(49) == 1
    assert factor(50) == pytest.approx(0.1)
    assert factor(80) == pytest.approx(0.01)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, criterion = fresh()
    run(whole, criterion, 2)

    first, criterion = fresh()
    run(first, criterion, 1)
    save_state(tmp_path, first.state_dict())
    second, criterion = fresh()
    second.load_state_dict(load_state(tmp_path))
    assert second.epochs_done == 1 and second.model.quantizer.started
    run(second, criterion, 2)

    assert second.history[1]["total"] == whole.history[1]["total"]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name


def test_a_loss_that_is_not_finite_stops_before_the_weights_change():
    state, criterion = fresh()
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    batches = make_batches(1)
    batches[0].audio_BTA.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        train_epoch(state, state.model, criterion, batches, RECIPE, CPU)
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())
    assert state.history == []


def test_a_model_comes_back_as_it_was_saved(tmp_path):
    state, _ = fresh()
    path = tmp_path / "model.safetensors"
    save_model(path, state.model, CLASSES, SMALL)
    model, classes = load_model(path)
    assert classes == CLASSES
    assert not model.training
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    first = path.read_bytes()
    save_model(path, model, classes, SMALL)
    assert path.read_bytes() == first


def test_the_untrained_control_has_other_weights(tmp_path):
    state, criterion = fresh()
    run(state, criterion, 1)
    path = tmp_path / "model.safetensors"
    save_model(path, state.model, CLASSES, SMALL)
    trained, untrained = load_model(path)[0], load_model(path, trained=False)[0]
    assert not torch.equal(trained.prototypes_ND, untrained.prototypes_ND)


def test_a_checkpoint_from_before_the_renaming_can_be_read(tmp_path):
    state, path, about = saved(tmp_path)
    old_keys = {new: old for old, new in RENAMED["train.model"].items()}
    about["model"] = {old_keys.get(key, key): value for key, value in about["model"].items() if key != "name"}
    assert "width" in about["model"] and "hidden_dim" not in about["model"]
    weights = load_file(path)
    weights["quantizer.free_KD"] = weights.pop("quantizer.codebook_weight")
    save_file(weights, path, {"qdformer": json.dumps(about)})
    model, classes = load_model(path)
    assert classes == CLASSES and model.settings.hidden_dim == SMALL.hidden_dim
    for name, value in state.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_checkpoints_of_another_architecture_are_refused(tmp_path):
    state, path, about = saved(tmp_path)
    weights = load_file(path)
    del weights["fusion.feed_forward.wide.weight"]
    save_file(weights, path, {"qdformer": json.dumps(about)})
    with pytest.raises(CheckpointError, match=r"(?s)model.safetensors: not a usable .*fusion.feed_forward.wide.weight"):
        load_model(path)
    del about["model"]["calibrate_from"]
    save_file(weights, path, {"qdformer": json.dumps(about)})
    with pytest.raises(CheckpointError, match=r"(?s)model.safetensors: not a usable .*calibrate_from"):
        load_model(path)


def test_damaged_checkpoints_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="none.safetensors: no such checkpoint"):
        load_model(tmp_path / "none.safetensors")
    state, _ = fresh()
    path = tmp_path / "model.safetensors"
    save_model(path, state.model, CLASSES, SMALL)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="model.safetensors: not a usable QDFormer checkpoint"):
        load_model(path)

    save_state(tmp_path, {"history": []})
    content = bytearray((tmp_path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="state.pt: damaged: SHA-256"):
        load_state(tmp_path)
    (tmp_path / "state.pt").unlink()
    with pytest.raises(CheckpointError, match="state.pt: missing"):
        load_state(tmp_path)
