"""The record in MLflow: how runs end, are gone on with, take their evaluation, and become versions."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.workspace import preset_settings
from qdformer import tracking
from qdformer.data.layout import SPLITS, ClassInfo, metadata_row, write_metadata
from qdformer.digests import file_sha256

PROVENANCE = {"data_digest": "d1", "dataset_digest": "s1", "code_digest": "c1", "dvc_lock_digest": "l1"}
SOURCE = "dvc://abc.dir/model.safetensors"
MODEL = "qdformer-toy"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """An SQLite store with its tables made, which takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(empty_store, tmp_path, monkeypatch) -> MlflowClient:
    """A client of a store of the test's own, which the environment names."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return MlflowClient(tracking.tracking_uri())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """The tables of a data set of one clip a split."""
    root = tmp_path_factory.mktemp("dataset")
    rows = [metadata_row(uid, subset="v1s", split=uid, classes=["dog"], frames=3, unseen=False) for uid in SPLITS]
    write_metadata(root, rows, [ClassInfo("dog", False)])
    return root


@pytest.fixture
def settings():
    return preset_settings("toy")


def results(root: Path, score: float, weights: str = "weights") -> tuple[Path, Path]:
    """A checkpoint with its history, and the reports of its evaluation."""
    reports, checkpoint = root / "reports", root / "model.safetensors"
    (reports / "metrics").mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(weights)
    checkpoint.with_name("history.csv").write_text("epoch,total,mask\n1,2.0,1.0\n2,1.5,\n")
    (reports / "metrics" / "clean.json").write_text(json.dumps({"miou_dataset": score, "davis_jf": None, "clips": 8}))
    (reports / "clips.csv").write_text("uid\n")
    return reports, checkpoint


def trained(settings, dataset: Path, root: Path, score: float, parent: str | None = None) -> tuple[str, Path]:
    """A finished training with its evaluation; the run's id and the checkpoint."""
    reports, checkpoint = results(root, score, f"weights of {score}")
    with tracking.training_run(settings, {**PROVENANCE, "code_digest": str(score)}, dataset, parent=parent) as run_id:
        tracking.finish_training(run_id, checkpoint)
    assert tracking.log_evaluation(reports, settings, PROVENANCE, checkpoint, dataset, parent=parent) == run_id
    return run_id, checkpoint


def test_a_training_run_has_settings_epochs_and_system_metrics(client, settings, dataset, tmp_path):
    with tracking.training_run(settings, PROVENANCE, dataset) as run_id:
        for epoch in (1, 2):
            tracking.log_epoch(tracking.tracking_uri(), run_id, {"epoch": epoch, "total": 1 / epoch})
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.model.width"] == str(settings.train.model.width)
    assert run.data.tags["data_digest"] == "d1"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/total")] == [
        (1, 1),
        (2, 0.5),
    ]
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts" / "qdformer-toy").as_uri())


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_a_broken_run_says_how_it_ended_and_is_gone_on_with(client, settings, dataset, error, status):
    with pytest.raises(error), tracking.training_run(settings, PROVENANCE, dataset) as first:
        raise error
    assert client.get_run(first).info.status == status
    with tracking.training_run(settings, {**PROVENANCE, "data_digest": "d2"}, dataset) as other:
        assert other != first
    with tracking.training_run(settings, PROVENANCE, dataset) as again:
        assert again == first
        assert client.get_run(first).info.status == "RUNNING"
    with tracking.training_run(settings, PROVENANCE, dataset) as new:
        assert new != first  # a finished run is left as it is


def test_a_run_whose_process_was_killed_outright_is_marked(client, settings, dataset):
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom pipelines.workspace import preset_settings\n"
        "from qdformer import tracking\n"
        "with tracking.training_run(preset_settings('toy'), {'dataset_digest': 'gone'}, Path(sys.argv[1])) as run:\n"
        "    print(run, flush=True)\n    os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(dataset)], capture_output=True, text=True)
    run_id = done.stdout.strip()
    assert client.get_run(run_id).info.status == "RUNNING", done.stderr
    with tracking.training_run(settings, PROVENANCE, dataset):
        assert client.get_run(run_id).info.status == "KILLED"


def test_an_evaluation_joins_the_run_of_its_checkpoint_once(client, settings, dataset, tmp_path):
    run_id, checkpoint = trained(settings, dataset, tmp_path / "a", 0.4)
    run = client.get_run(run_id)
    assert run.data.metrics["clean/miou_dataset"] == 0.4
    assert run.data.metrics["clean/clips"] == 8
    assert {item.path for item in client.list_artifacts(run_id, "reports")} == {"reports/clips.csv", "reports/metrics"}
    again = tracking.log_evaluation(tmp_path / "a" / "reports", settings, PROVENANCE, checkpoint, dataset)
    assert again == run_id
    assert len(client.get_metric_history(run_id, "clean/miou_dataset")) == 1


def test_an_evaluation_of_a_checkpoint_from_elsewhere_gets_a_run_of_its_own(client, settings, dataset, tmp_path):
    reports, checkpoint = results(tmp_path / "pulled", 0.3)
    run_id = tracking.log_evaluation(reports, settings, PROVENANCE, checkpoint, dataset)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["download.dataset"] == "toy"
    assert [metric.value for metric in client.get_metric_history(run_id, "train/total")] == [2.0, 1.5]
    assert len(client.get_metric_history(run_id, "train/mask")) == 1  # an empty cell is no figure
    assert run.data.metrics["clean/miou_dataset"] == 0.3
    assert tracking.log_evaluation(reports, settings, PROVENANCE, checkpoint, dataset) == run_id


def test_nested_runs_are_kept_apart_from_others_with_the_same_checkpoint(client, settings, dataset, tmp_path):
    with tracking.parent_run(settings, PROVENANCE, "sweep") as parent:
        child, checkpoint = trained(settings, dataset, tmp_path / "row", 0.4, parent)
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == parent
    alone = tracking.log_evaluation(tmp_path / "row" / "reports", settings, PROVENANCE, checkpoint, dataset)
    assert alone != child
    with tracking.parent_run(settings, PROVENANCE, "sweep") as again:
        assert again == parent  # even when finished


def test_the_alias_moves_only_to_a_better_checkpoint(client, settings, dataset, tmp_path):
    def judge(score):
        run_id, checkpoint = trained(settings, dataset, tmp_path / str(score), score)
        version = tracking.register(MODEL, run_id, file_sha256(checkpoint), SOURCE, "a card")
        return int(version.version), tracking.promote(MODEL, version)

    assert tracking.find_champion(MODEL) is None
    assert judge(0.4) == (1, "champion with clean/miou_dataset 0.400")
    assert judge(0.3) == (2, "not champion: clean/miou_dataset 0.300, version 1 has 0.400")
    assert int(tracking.find_champion(MODEL).version) == 1
    assert judge(0.5)[1].startswith("champion: clean/miou_dataset 0.500")
    champion = tracking.find_champion(MODEL)
    assert (int(champion.version), champion.source) == (3, SOURCE)


def test_registering_that_was_cut_short_is_gone_on_with(client, settings, dataset, tmp_path, monkeypatch):
    run_id, checkpoint = trained(settings, dataset, tmp_path / "a", 0.4)
    digest = file_sha256(checkpoint)
    version = tracking.register(MODEL, run_id, digest, SOURCE, "a card")
    assert "judged" not in tracking.find_version(MODEL, digest).tags
    with monkeypatch.context() as patch, pytest.raises(OSError):  # dies after the alias, before the verdict is kept
        patch.setattr(MlflowClient, "set_model_version_tag", lambda *_: (_ for _ in ()).throw(OSError))
        tracking.promote(MODEL, version)
    again = tracking.register(MODEL, run_id, digest, SOURCE, "a card")
    assert again.version == version.version
    tracking.promote(MODEL, again)
    assert tracking.find_version(MODEL, digest).tags["judged"].startswith("champion")
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 1


def test_the_store_is_absolute_and_the_library_does_not_load_mlflow(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking.tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"
    check = "import sys, qdformer; sys.exit(sorted({'mlflow', 'prefect', 'dvc', 'ray'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", check], env={**os.environ}).returncode == 0
