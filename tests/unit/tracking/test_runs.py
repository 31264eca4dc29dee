"""The record in MLflow: end and resumption of runs, their evaluation, and the versions of models."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines.settings import preset_settings
from qdformer import tracking
from qdformer.data.layout import ClassInfo, metadata_row, write_metadata
from qdformer.tracking import store
from qdformer.utils.constants import SPLITS
from qdformer.utils.digests import file_sha256

PROVENANCE = {"data_digest": "d1", "dataset_digest": "s1", "code_digest": "c1", "dvc_lock_digest": "l1"}
ROWS = (("zebra", 0.1), ("ant", 0.2))
SOURCE = "dvc://abc.dir/model.safetensors"
MODEL = "qdformer-toy"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory) -> Path:
    """An SQLite store with its tables, whose creation takes seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(empty_store, tmp_path, monkeypatch) -> MlflowClient:
    """A client of the test's own store, named by the environment."""
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    return MlflowClient(tracking.tracking_uri())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    """The tables of a data set with one clip per split."""
    root = tmp_path_factory.mktemp("dataset")
    rows = [metadata_row(uid, subset="v1s", split=uid, classes=["dog"], frames=3, unseen=False) for uid in SPLITS]
    write_metadata(root, rows, [ClassInfo("dog", False)])
    return root


@pytest.fixture
def settings():
    return preset_settings("toy")


@contextlib.contextmanager
def locked(store: Path, seconds: float) -> Iterator[Callable[[], None]]:
    """Another process locks the store for `seconds`, at most until the block ends; yield a function that unlocks it."""
    hold = "import sqlite3, sys, time\nc = sqlite3.connect(sys.argv[1])\nc.execute('BEGIN EXCLUSIVE')\n"
    hold += "print('held', flush=True)\ntime.sleep(float(sys.argv[2]))"
    command = [sys.executable, "-c", hold, str(store), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def unlock() -> None:
        process.kill()
        process.wait()

    assert process.stdout.readline() == "held\n"
    try:
        yield unlock
    finally:
        unlock()


def results(root: Path, score: float, weights: str = "weights") -> tuple[Path, Path]:
    """Reports of an evaluation, and the checkpoint with its history."""
    reports, checkpoint = root / "reports", root / "model.safetensors"
    (reports / "metrics").mkdir(parents=True, exist_ok=True)
    checkpoint.write_text(weights)
    checkpoint.with_name("history.csv").write_text("epoch,total,mask\n1,2.0,1.0\n2,1.5,\n")
    (reports / "metrics" / "clean.json").write_text(json.dumps({"miou_dataset": score, "davis_jf": None, "clips": 8}))
    (reports / "clips.csv").write_text("uid\n")
    return reports, checkpoint


def trained(
    settings, dataset: Path, root: Path, score: float, parent: str | None = None, name: str = "train"
) -> tuple[str, Path]:
    """A finished training with its evaluation; the run's id and the checkpoint."""
    reports, checkpoint = results(root, score, f"weights of {score}")
    with tracking.training_run(settings, {**PROVENANCE, "code_digest": str(score)}, dataset, name, parent) as run_id:
        tracking.finish_training(run_id, checkpoint)
    about = (reports, settings, PROVENANCE, checkpoint, dataset)
    assert tracking.log_evaluation(*about, parent=parent, seconds=2.5) == run_id
    return run_id, checkpoint


def test_a_training_run_has_settings_epochs_and_system_metrics(client, settings, dataset, tmp_path):
    with tracking.training_run(settings, PROVENANCE, dataset) as run_id:
        for epoch in (1, 2):
            tracking.log_epoch(tracking.tracking_uri(), run_id, {"epoch": epoch, "total": 1 / epoch, "val_total": 3.0})
        tracking.log_tags(run_id, {"workers": "2", "global_batch_size": "4"})
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert (run.data.tags["workers"], run.data.tags["global_batch_size"]) == ("2", "4")
    assert run.data.metrics["val/total"] == 3 and "train/val_total" not in run.data.metrics
    assert run.info.run_name == "toy seed 0"
    assert run.data.params["train.model.hidden_dim"] == str(settings.train.model.hidden_dim)
    assert run.data.tags["data_digest"] == "d1"
    assert [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/total")] == [
        (1, 1),
        (2, 0.5),
    ]
    assert run.info.artifact_uri.startswith((tmp_path / "mlartifacts" / "qdformer-toy").as_uri())


def test_run_records_provenance_machine_and_protocols(client, settings, dataset, tmp_path):
    run_id, _ = trained(settings, dataset, tmp_path / "a", 0.4)
    run = client.get_run(run_id)
    tags = run.data.tags
    assert (tags["dataset_digest"], tags["dvc_lock_digest"]) == ("s1", "l1")
    assert int(tags["machine.cores"]) >= 1 and tags["machine.cpu"] and tags["machine.gpu"]
    assert tags["evaluation.machine.cpu"] == tags["machine.cpu"]
    assert tags["evaluation.code_digest"] == "c1" and tags["code_digest"] == "0.4"  # trained by other code
    assert "classes with background" in tags["protocol.miou_dataset"]
    assert (tags["protocol.split"], tags["protocol.task"]) == ("test, composed", "avss")
    for seed in ("download.seed", "train.seed", "evaluate.seed"):
        assert run.data.params[seed] == "0"
    assert run.data.metrics["seconds/train"] > 0 and run.data.metrics["seconds/evaluate"] == 2.5
    inputs = {item.tags[0].value: item.dataset for item in run.inputs.dataset_inputs}
    assert {context: data.name for context, data in inputs.items()} == {"training": "toy-train", "testing": "toy-test"}
    assert {data.digest for data in inputs.values()} == {"s1"}
    assert json.loads(inputs["testing"].source)["uri"] == str(dataset / "metadata.csv")
    assert json.loads(inputs["testing"].profile)["num_rows"] == 1
    files = {item.path for item in client.list_artifacts(run_id, "settings")}
    assert files == {"settings/train.yaml", "settings/evaluate.yaml"}


def test_last_dvc_lock_is_recorded(client, settings, dataset, tmp_path):
    run_id, checkpoint = trained(settings, dataset, tmp_path / "a", 0.4)
    later = {**PROVENANCE, "dvc_lock_digest": "l2"}  # DVC writes it after the stage evaluate
    assert tracking.log_evaluation(tmp_path / "a" / "reports", settings, later, checkpoint, dataset) == run_id
    assert client.get_run(run_id).data.tags["dvc_lock_digest"] == "l2"


def test_sweep_is_compared_in_a_saved_view_and_in_its_description(client, settings, dataset, tmp_path):
    with tracking.parent_run(settings, PROVENANCE, "sweep") as parent:
        with pytest.raises(tracking.TrackingError, match="no run with the tag row below it"):
            tracking.save_comparison(parent, [], "", "")
        rows = {name: trained(settings, dataset, tmp_path / name, score, parent, name)[0] for name, score in ROWS}
        tags = {name: f"{position} {name}" for position, name in enumerate(rows, start=1)}
        for name, run_id in rows.items():
            client.set_tag(run_id, "row", tags[name])
        colors = dict(zip(tags.values(), ("#0072b2", "#e69f00"), strict=True))
        page = tracking.save_comparison(parent, ["clean/miou_dataset"], "sweep 1", "| row |", colors)
    experiment = client.get_experiment_by_name(MODEL)
    envelope = json.loads(experiment.tags[f"mlflow.sharedViewState.{parent}"])
    view = json.loads(envelope["state"])
    assert envelope["name"] == "sweep 1" and f"viewStateShareKey={parent}" in page
    order = [view["orderByKey"] + " ASC"]
    shown = client.search_runs([experiment.experiment_id], view["searchFilter"], order_by=order)
    assert [run.info.run_id for run in shown] == list(rows.values())
    assert [run.data.tags["mlflow.runColor"] for run in shown] == list(colors.values())
    assert view["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "row"}]
    assert view["compareRunCharts"][0]["metricKey"] == "clean/miou_dataset"
    note = client.get_run(parent).data.tags["mlflow.note.content"]
    assert note.endswith("| row |") and page in note and all(run_id in note for run_id in rows.values())


@pytest.mark.slow  # MLflow itself retries for 20 s
def test_calls_to_a_locked_store_are_retried(client, settings, dataset, tmp_path):
    with tracking.training_run(settings, PROVENANCE, dataset) as run_id, locked(tmp_path / "mlflow.db", seconds=25):
        tracking.log_epoch(tracking.tracking_uri(), run_id, {"epoch": 1, "total": 2.0})
    assert client.get_metric_history(run_id, "train/total")[0].value == 2.0


@pytest.mark.slow
def test_unreachable_store_does_not_stop_a_training_and_gets_its_record_later(
    client, settings, dataset, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(store, "RETRY_SECONDS", 0)
    reports, checkpoint = results(tmp_path / "a", 0.4)
    started = time.monotonic()
    with locked(tmp_path / "mlflow.db", seconds=120) as unlock:
        with pytest.raises(tracking.TrackingError, match="locked or unreachable"):
            tracking.log_evaluation(reports, settings, PROVENANCE, checkpoint, dataset)
        unlock()
    with tracking.training_run(settings, PROVENANCE, dataset) as run_id:
        with locked(tmp_path / "mlflow.db", seconds=120):
            tracking.log_epoch(tracking.tracking_uri(), run_id, {"epoch": 1, "total": 2.0})
        assert "epoch 1 is recorded when the training ends" in capsys.readouterr().err
        tracking.finish_training(run_id, checkpoint)
    assert [metric.step for metric in client.get_metric_history(run_id, "train/total")] == [1, 2]

    with tracking.training_run(settings, {**PROVENANCE, "code_digest": "c2"}, dataset) as lost:
        lock = locked(tmp_path / "mlflow.db", seconds=120)
        unlock = lock.__enter__()
        checkpoint.write_text("other weights")
        tracking.finish_training(lost, checkpoint)
    unlock()
    assert "recorded with its evaluation" in capsys.readouterr().err
    assert client.get_run(lost).info.status == "RUNNING"
    run_id = tracking.log_evaluation(reports, settings, PROVENANCE, checkpoint, dataset)
    assert run_id != lost
    assert [metric.step for metric in client.get_metric_history(run_id, "train/total")] == [1, 2]
    assert time.monotonic() - started < 200  # five calls that MLflow retries for 20 s each


def test_only_finished_and_evaluated_runs_are_registered(client, settings, dataset, tmp_path):
    with pytest.raises(KeyboardInterrupt), tracking.training_run(settings, PROVENANCE, dataset) as killed:
        raise KeyboardInterrupt
    with pytest.raises(tracking.TrackingError, match="is KILLED without clean/miou_dataset"):
        tracking.register(MODEL, killed, "sha", SOURCE, "a card")
    assert tracking.find_champion(MODEL) is None


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")]
)
def test_interrupted_run_has_its_status_and_is_resumed(client, settings, dataset, error, status):
    with pytest.raises(error), tracking.training_run(settings, PROVENANCE, dataset) as first:
        raise error
    assert client.get_run(first).info.status == status
    with tracking.training_run(settings, {**PROVENANCE, "data_digest": "d2"}, dataset) as other:
        assert other != first
    with tracking.training_run(settings, PROVENANCE, dataset) as again:
        assert again == first
        assert client.get_run(first).info.status == "RUNNING"
    with tracking.training_run(settings, PROVENANCE, dataset) as new:
        assert new != first  # a finished run is not resumed


@pytest.mark.parametrize("host", ["", "a-new-name"])
def test_run_of_a_dead_process_is_marked_as_killed(client, settings, dataset, host):
    """Also if the host, such as a container, has got another name since."""
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom pipelines.settings import preset_settings\n"
        "from qdformer import tracking\n"
        "with tracking.training_run(preset_settings('toy'), {'dataset_digest': 'gone'}, Path(sys.argv[1])) as run:\n"
        "    print(run, flush=True)\n    os._exit(9)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(dataset)], capture_output=True, text=True)
    run_id = done.stdout.strip()
    assert client.get_run(run_id).info.status == "RUNNING", done.stderr
    if host:
        client.set_tag(run_id, "host", host)
    with tracking.training_run(settings, PROVENANCE, dataset):
        assert client.get_run(run_id).info.status == "KILLED"


def test_live_runs_and_those_of_other_machines_are_left_alone(client, settings, dataset, tmp_path):
    """A process id that does not fit, as after a change of the clock with ids by start times, does not end a run."""
    with tracking.training_run(settings, PROVENANCE, dataset) as live:
        client.set_tag(live, "process", "1 2 3")
        elsewhere = client.create_run(client.get_run(live).info.experiment_id).info.run_id
        for key, value in {"host": "elsewhere", "process": "1 2 3", "locks": str(tmp_path / "missing")}.items():
            client.set_tag(elsewhere, key, value)
        with tracking.parent_run(settings, PROVENANCE, "a sweep"):
            assert client.get_run(live).info.status == client.get_run(elsewhere).info.status == "RUNNING"
        client.set_tag(elsewhere, "host", socket.gethostname())
        with tracking.parent_run(settings, PROVENANCE, "another sweep"):
            assert client.get_run(live).info.status == "RUNNING"
            assert client.get_run(elsewhere).info.status == "KILLED"
    assert client.get_run(live).info.status == "FINISHED"


def test_evaluation_is_recorded_once_in_the_run_of_its_checkpoint(client, settings, dataset, tmp_path):
    run_id, checkpoint = trained(settings, dataset, tmp_path / "a", 0.4)
    run = client.get_run(run_id)
    assert run.data.metrics["clean/miou_dataset"] == 0.4
    assert run.data.metrics["clean/clips"] == 8
    assert {item.path for item in client.list_artifacts(run_id, "reports")} == {"reports/clips.csv", "reports/metrics"}
    again = tracking.log_evaluation(tmp_path / "a" / "reports", settings, PROVENANCE, checkpoint, dataset)
    assert again == run_id
    assert len(client.get_metric_history(run_id, "clean/miou_dataset")) == 1


def test_evaluation_of_an_unknown_checkpoint_creates_a_run(client, settings, dataset, tmp_path):
    reports, checkpoint = results(tmp_path / "pulled", 0.3)
    run_id = tracking.log_evaluation(reports, settings, PROVENANCE, checkpoint, dataset)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["download.dataset"] == "toy"
    assert [metric.value for metric in client.get_metric_history(run_id, "train/total")] == [2.0, 1.5]
    assert len(client.get_metric_history(run_id, "train/mask")) == 1  # an empty cell is not logged
    assert run.data.metrics["clean/miou_dataset"] == 0.3
    assert tracking.log_evaluation(reports, settings, PROVENANCE, checkpoint, dataset) == run_id


def test_nested_runs_are_separate_from_others_with_the_same_checkpoint(client, settings, dataset, tmp_path):
    with tracking.parent_run(settings, PROVENANCE, "sweep") as parent:
        child, checkpoint = trained(settings, dataset, tmp_path / "row", 0.4, parent)
    assert client.get_run(child).data.tags["mlflow.parentRunId"] == parent
    alone = tracking.log_evaluation(tmp_path / "row" / "reports", settings, PROVENANCE, checkpoint, dataset)
    assert alone != child
    with tracking.parent_run(settings, PROVENANCE, "sweep") as again:
        assert again == parent  # even when finished


GATE = tracking.Gate("clean/miou_dataset", 0.1, 0.05, 0.15, "an interval above +0.0000", True)
PROMOTED, REFUSED = tracking.Verdict(True, (GATE,), "better"), tracking.Verdict(False, (GATE,), "worse")


@pytest.fixture
def new_version(client, settings, dataset, tmp_path):
    """Train and register a version with the given score."""

    def make(score):
        run_id, checkpoint = trained(settings, dataset, tmp_path / str(score), score)
        return tracking.register(MODEL, run_id, file_sha256(checkpoint), SOURCE, "a card", {"dvc.vggish": "v1"})

    return make


def champion_number():
    return int(tracking.find_champion(MODEL).version)


def test_alias_moves_only_with_a_verdict_and_every_change_is_logged(client, new_version):
    first = new_version(0.4)
    assert tracking.find_champion(MODEL) is None
    assert tracking.judge(MODEL, first, None, PROMOTED) == "champion: better"
    assert tracking.judge(MODEL, new_version(0.3), first, REFUSED) == "not champion: worse (compared with version 1)"
    assert champion_number() == 1
    assert tracking.judge(MODEL, new_version(0.5), first, PROMOTED).startswith("champion: better")
    champion = tracking.find_champion(MODEL)
    assert (int(champion.version), champion.source) == (3, SOURCE)
    assert champion.description == "a card" and champion.tags["mlflow.model.isExternal"] == "true"
    assert champion.tags["gate.clean/miou_dataset"] == str(GATE) and champion.tags["compared_with"] == "1"
    assert champion.tags["dvc.vggish"] == "v1"
    assert "model_card.md" in {file.path for file in client.list_artifacts(champion.run_id)}
    log = tracking.read_alias_log(MODEL)
    assert [(change.before, change.after) for change in log] == [(None, "1"), ("1", "3")]
    assert log[1].reason == "champion: better (compared with version 1)" and log[1].time.endswith("+00:00")


def test_a_verdict_on_a_champion_of_before_changes_nothing(client, new_version):
    first, second, third = (new_version(score) for score in (0.4, 0.5, 0.6))
    tracking.judge(MODEL, first, None, PROMOTED)
    tracking.judge(MODEL, second, first, PROMOTED)
    with pytest.raises(
        tracking.TrackingError, match="version 2 became the champion while version 3 was compared with 1"
    ):
        tracking.judge(MODEL, third, first, PROMOTED)
    assert champion_number() == 2 and len(tracking.read_alias_log(MODEL)) == 2
    assert "judged" not in client.get_model_version(MODEL, third.version).tags


@pytest.mark.parametrize("fails", ["set_registered_model_tag", "set_registered_model_alias", "set_model_version_tag"])
def test_an_interrupted_promotion_is_completed_once(client, new_version, monkeypatch, fails):
    first = new_version(0.4)
    tracking.judge(MODEL, first, None, PROMOTED)
    second = new_version(0.5)

    def die(*_):
        raise OSError

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(MlflowClient, fails, die)
        tracking.judge(MODEL, second, first, PROMOTED)
    found = tracking.find_version(MODEL, second.tags["checkpoint_sha256"])
    assert "judged" not in found.tags and champion_number() == 1
    tracking.judge(MODEL, found, first, PROMOTED)
    tracking.judge(MODEL, found, first, PROMOTED)
    assert champion_number() == 2
    assert tracking.find_version(MODEL, second.tags["checkpoint_sha256"]).tags["judged"].startswith("champion")
    assert [change.after for change in tracking.read_alias_log(MODEL)] == ["1", "2"]
    assert len(client.search_model_versions(f"name = '{MODEL}'")) == 2


def test_a_champion_is_rolled_back_with_a_reason(client, new_version):
    first, second, third = (new_version(score) for score in (0.4, 0.5, 0.6))
    with pytest.raises(tracking.TrackingError, match="no champion yet"):
        tracking.roll_back(MODEL, None, "early")
    tracking.judge(MODEL, first, None, PROMOTED)
    with pytest.raises(tracking.TrackingError, match="version 1 is its first champion"):
        tracking.roll_back(MODEL, None, "early")
    tracking.judge(MODEL, second, first, PROMOTED)
    tracking.judge(MODEL, third, second, PROMOTED)
    change = tracking.roll_back(MODEL, None, "sees dogs everywhere")
    assert (change.before, change.after, change.reason) == ("3", "2", "rolled back: sees dogs everywhere")
    assert champion_number() == 2
    assert client.get_model_version(MODEL, third.version).tags["withdrawn"] == "sees dogs everywhere"
    assert tracking.roll_back(MODEL, None, "worse than thought").after == "1"
    for to, told in (("7", "no version 7; there are 1, 2, 3"), ("1", "version 1 is the champion already")):
        with pytest.raises(tracking.TrackingError, match=told):
            tracking.roll_back(MODEL, to, "x")
    tracking.roll_back(MODEL, "3", "it was the data")
    assert champion_number() == 3 and "withdrawn" not in client.get_model_version(MODEL, third.version).tags
    assert [change.after for change in tracking.read_alias_log(MODEL)] == ["1", "2", "3", "2", "1", "3"]


def test_store_is_absolute_and_the_library_does_not_load_mlflow(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking.tracking_uri() == f"sqlite:///{Path.cwd()}/mlflow.db"
    check = "import sys, qdformer; sys.exit(sorted({'mlflow', 'prefect', 'dvc', 'ray'} & set(sys.modules)) or 0)"
    assert subprocess.run([sys.executable, "-c", check], env={**os.environ}).returncode == 0
