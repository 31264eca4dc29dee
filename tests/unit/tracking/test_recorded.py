"""Models of the record: the champion and the model of a run, found by their digests, with the settings of their run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient

from pipelines.settings import preset_settings
from qdformer.audio.vggish import VGGish
from qdformer.audio.vggish.model import save_vggish
from qdformer.data.manifest import Classes
from qdformer.tracking import TrackingError
from qdformer.tracking.recorded import find_weights, from_champion, from_run
from qdformer.training.checkpoint import save_model
from qdformer.utils.digests import file_sha256
from tests.helpers.model import CLASSES, make_model

NAMES = tuple(f"class {index}" for index in range(CLASSES))
MODEL = "qdformer-toy"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint and VGGish with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    model = make_model()
    save_model(folder / "model.safetensors", model, Classes(NAMES, (False,) * CLASSES), model.settings)
    save_vggish(VGGish(), folder / "vggish.safetensors")
    return folder / "model.safetensors", folder / "vggish.safetensors"


@pytest.fixture
def uri(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def record(uri: str, weights: tuple[Path, Path], **tags: str) -> str:
    """A run of the checkpoint, trained with pictures of 96 pixels and patches in the middle of their second."""
    client, settings = MlflowClient(uri), preset_settings("toy").model_dump()
    settings["train"]["image_size"], settings["features"]["center"] = 96, True
    run_id = client.create_run("0", tags=tags).info.run_id
    client.log_dict(run_id, settings, "settings/train.yaml")
    return run_id


def digests(weights: tuple[Path, Path]) -> dict[str, str]:
    return dict(zip(("checkpoint_sha256", "vggish_sha256"), map(file_sha256, weights), strict=True))


def into_dvc_cache(project: Path, *files: Path) -> None:
    """Store each file as DVC stores an out that is a folder."""
    cache = project / ".dvc" / "cache" / "files" / "md5"
    for number, file in enumerate(files):
        digest = f"{number:032x}"
        (cache / digest[:2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, cache / digest[:2] / digest[2:])
        listing = [{"md5": "f" * 32, "relpath": "history.csv"}, {"md5": digest, "relpath": file.name}]
        (cache / digest[:2] / f"{digest[2:]}.dir").write_text(json.dumps(listing))


def test_the_champion_is_found_in_the_cache_with_the_settings_of_its_run(uri, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MLflow writes the files of runs beside the store
    run_id = record(uri, weights, **digests(weights))
    client = MlflowClient(uri)
    client.create_registered_model(MODEL)
    with pytest.raises(TrackingError, match="qdformer-toy has no champion; `make retrain` registers one"):
        from_champion(MODEL, uri)
    client.create_model_version(MODEL, "dvc://abc.dir/model.safetensors", run_id)
    client.set_registered_model_alias(MODEL, "champion", "1")
    with pytest.raises(TrackingError, match=r"no model.safetensors with SHA-256 .*`dvc pull` fetches it"):
        from_champion(MODEL, uri, project=tmp_path)
    into_dvc_cache(tmp_path, *weights)
    segmenter = from_champion(MODEL, uri, project=tmp_path, hop=2)
    assert segmenter.classes == NAMES and segmenter.hop == 2
    assert segmenter.clip_frames == preset_settings("toy").download.frames
    assert segmenter.predictor.image_size == 96 and segmenter.predictor.embedder.center
    for own, expected in zip(segmenter.predictor.model.parameters(), make_model_again().parameters(), strict=True):
        assert torch.equal(own, expected)


def make_model_again() -> torch.nn.Module:
    torch.manual_seed(0)
    return make_model()


def test_the_model_of_a_run_is_found_in_a_workspace_or_a_sweep(uri, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_id = record(uri, weights, **digests(weights))
    for file, place in zip(weights, ("workspaces/toy/sweeps/full", "models/vggish"), strict=True):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(file, tmp_path / place)
    assert find_weights(tmp_path, "model.safetensors", file_sha256(weights[0])) == (
        tmp_path / "workspaces/toy/sweeps/full/model.safetensors"
    )
    assert from_run(run_id, uri, project=tmp_path).classes == NAMES
    (tmp_path / "models/vggish/vggish.safetensors").write_bytes(b"another")
    with pytest.raises(TrackingError, match=r"no vggish.safetensors with SHA-256"):
        from_run(run_id, uri, project=tmp_path)


def test_a_run_of_a_version_with_other_settings_is_loaded(uri, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    into_dvc_cache(tmp_path, *weights)
    run_id, client = record(uri, weights, **digests(weights)), MlflowClient(uri)
    settings = preset_settings("toy").model_dump()
    del settings["promote"], settings["train"]["patience"]
    settings["sweep"]["rows"], settings["train"]["image_size"] = ["full"], 64
    client.log_dict(run_id, settings, "settings/train.yaml")
    assert from_run(run_id, uri, project=tmp_path).predictor.image_size == 64
    del settings["train"]["resize"]
    client.log_dict(run_id, settings, "settings/train.yaml")
    with pytest.raises(TrackingError, match=f"settings/train.yaml of run {run_id}: do not state .*'resize'"):
        from_run(run_id, uri, project=tmp_path)
    settings["train"]["resize"], settings["features"]["pca"] = "longest", {"path": "pca.pth"}
    client.log_dict(run_id, settings, "settings/train.yaml")
    with pytest.raises(TrackingError, match=r"features\.pca: .*expected null"):
        from_run(run_id, uri, project=tmp_path)


def test_runs_without_a_model_are_named(uri, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrackingError, match=f"no run {'0' * 32}"):
        from_run("0" * 32, uri)
    with pytest.raises(TrackingError, match="has trained no model"):
        from_run(record(uri, weights), uri)
    early = record(uri, weights, checkpoint_sha256=file_sha256(weights[0]))
    with pytest.raises(TrackingError, match="does not state its VGGish"):
        from_run(early, uri)
