"""`make train SET=...`: a preset with some settings changed, in a workspace of its own."""

from __future__ import annotations

import pytest
import yaml
from mlflow import MlflowClient

from pipelines.settings import preset_settings
from pipelines.variant import open_variant, variant_name

TRAIN = ("-m", "pipelines.flows", "train")


def test_the_settings_are_those_of_the_preset_with_the_changes(project):
    settings, workspace = open_variant("toy", ["model.codebook_size=64", "epochs=4"], project.root)
    toy = preset_settings("toy", project.root)
    assert (settings.train.model.codebook_size, settings.train.epochs) == (64, 4)
    model = toy.train.model.model_copy(update={"codebook_size": 64})
    train = toy.train.model_copy(update={"epochs": 4, "model": model})
    assert settings == toy.model_copy(update={"train": train})
    assert workspace == project.root / "workspaces" / "toy+epochs=4+model.codebook_size=64"
    text = (workspace / "params.yaml").read_text()
    assert text.startswith("# Written by `make train`: toy with model.codebook_size=64 epochs=4\n")
    assert yaml.safe_load(text) == settings.model_dump(mode="json")
    assert (workspace / "dvc.yaml").is_symlink()
    assert open_variant("toy", ["epochs=4", "model.codebook_size=64"], project.root)[1] == workspace


def test_names_of_workspaces_differ_for_different_settings():
    noisy = variant_name("toy", ["mix.noisy_splits=[train, test]"])
    assert noisy.startswith("toy+mix.noisy_splits=-train--test--") and "[" not in noisy
    assert noisy != variant_name("toy", ["mix.noisy_splits={train, test}"])
    long = [f"loss.mask={digit * 100}" for digit in "12"]
    names = {variant_name("toy", [override]) for override in long}
    assert len(names) == 2 and all(len(name) == 80 for name in names)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", 'SET is empty; expected settings, as in: make train SET="model.codebook_size=64 epochs=4"'),
        ("epochs=0", "SET: train.epochs: Input should be greater than 0, not 0"),
        ("codes=64", "SET: train.codes: unknown key; known here: task, condition, model"),
        ("epochs", "SET: epochs: expected KEY=VALUE, such as model.codebook_size=64"),
        ("epochs='4", "SET=epochs='4: No closing quotation"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_starts(project, given, message):
    done = project.python(*TRAIN, "--data", "toy", "--set", given)
    assert done.returncode == 2 and done.stderr == f"error: {message}" + done.stderr[len(f"error: {message}") :]
    assert "Traceback" not in done.stderr
    assert not any((project.root / name).exists() for name in ("workspaces", "mlflow.db", ".prefect"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_with_changed_settings_is_recorded_beside_the_preset(project, prefect_api):
    def train(given: str) -> str:
        done = project.python(*TRAIN, "--set", given, PREFECT_API_URL=prefect_api)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = train("learning_rate=0.0002 epochs=4")
    assert "Test metrics of preset stamps+epochs=4+learning_rate=0.0002 (data set stamps" in first
    assert "Every stage was up to date" in train("epochs=4 learning_rate=0.0002")
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("qdformer-stamps").experiment_id])
    assert run.info.run_name == "stamps+epochs=4+learning_rate=0.0002 seed 0"
    assert run.data.params["train.epochs"] == "4" and run.data.metrics["clean/miou_dataset"] == pytest.approx(0.2)
    assert not (project.root / "dvc.lock").exists(), "the results of params.yaml must be left alone"
