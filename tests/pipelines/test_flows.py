"""The flows on a pipeline of trivial stages: what they run, print, record and leave behind."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from pipelines.flows.schedule import serve_retrain
from pipelines.workspace import locked_settings, workspace_lock
from qdformer.utils.errors import InputError
from tests.helpers.processes import left_behind

REPRODUCE = ("-m", "pipelines.flows", "reproduce")
RETRAIN = ("-m", "pipelines.flows", "retrain")


def record(project) -> MlflowClient:
    return MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")


def task_runs(api: str) -> list[tuple[str, str]]:
    """Name and state of every task run in the API."""
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        answer = client.request("POST", "/task_runs/filter", json={"limit": 200})
        return [(run["name"], run["state_name"]) for run in answer.json()]


def wait_for(path: Path, process: subprocess.Popen[str], seconds: float = 200) -> None:
    """Wait until the file exists; the process must go on meanwhile."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("flow", ["reproduce", "sweep", "retrain", "schedule"])
def test_wrong_settings_are_one_line_before_anything_starts(project, flow):
    project.edit("params.yaml", "weight_decay:", "wait_decay:")
    done = project.python("-m", "pipelines.flows", flow)
    assert done.returncode == 2
    assert "wait_decay: unknown key" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (project.root / "mlflow.db").exists()
    assert not (project.root / "workspaces").exists()


def test_reproduce_runs_stale_stages_and_shows_metrics_and_record(project, prefect_api):
    first = project.python(*REPRODUCE, PREFECT_API_URL=prefect_api)
    assert first.returncode == 0, first.stderr
    assert re.search(r"clean +0\.300 +0\.150 +3", first.stdout)
    for shown in ("download", "train", "evaluate", "Seconds per stage", "make ui", "qdformer-stamps"):
        assert shown in first.stdout
    for stage in ("download", "train", "evaluate"):
        assert (stage, "Completed") in task_runs(prefect_api)
    assert (project.root / "reports/timings.csv").read_text().startswith("stage,seconds,finished\ndownload,")

    second = project.python(*REPRODUCE, PREFECT_API_URL=prefect_api)
    assert "Running stage" not in second.stdout
    assert "Every stage was up to date" in second.stdout
    client = record(project)
    (run,) = client.search_runs([client.get_experiment_by_name("qdformer-stamps").experiment_id])
    assert run.info.run_id in first.stdout
    assert run.info.run_id in second.stdout
    assert run.data.metrics["clean/miou_dataset"] == pytest.approx(0.3)

    (project.root / "mlflow.db").unlink()  # a new store, as after `dvc pull` on another machine
    third = project.python(*REPRODUCE, PREFECT_API_URL=prefect_api)
    assert third.returncode == 0, third.stderr
    assert run.info.run_id not in third.stdout
    assert len(client.search_runs([record(project).get_experiment_by_name("qdformer-stamps").experiment_id])) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "code", "tries", "exits"),
    [("download", 75, 3, 1), ("download", 1, 1, 1), ("download", 2, 1, 2), ("train", 1, 1, 1)],
)
def test_only_an_unreachable_source_is_retried_and_a_failure_is_reported(
    project, prefect_api, stage, code, tries, exits
):
    (project.root / f"fail-{stage}").write_text(str(code))
    done = project.python(*REPRODUCE, PREFECT_API_URL=prefect_api)
    assert done.returncode == exits
    assert f"error: {stage} was told to fail" in done.stderr
    assert done.stderr.endswith(f"error: stage {stage} failed\n")
    assert "Traceback" not in done.stderr
    assert len((project.root / f"tried-{stage}").read_text()) == tries
    assert (stage, "Failed") in task_runs(prefect_api)

    (project.root / f"fail-{stage}").unlink()
    assert project.python(*REPRODUCE, PREFECT_API_URL=prefect_api).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "to_group", "code"), [(signal.SIGINT, True, 130), (signal.SIGTERM, False, -15)])
def test_an_interrupted_run_leaves_no_process_and_can_be_continued(project, kind, to_group, code):
    (project.root / "slow-train").touch()
    process = project.start(*REPRODUCE)  # with a temporary server, as on a user's machine
    wait_for(project.root / "slow-started", process)
    if to_group:
        os.killpg(process.pid, kind)  # Ctrl-C reaches all processes of the terminal's group
    else:
        process.send_signal(kind)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    if to_group:
        assert output.endswith("interrupted: run the same command again to continue\n")
    time.sleep(1)
    assert left_behind(project.root) == ""

    (project.root / "slow-train").unlink()
    again = project.python(*REPRODUCE)
    assert again.returncode == 0, again.stderr
    assert "Stage 'download' didn't change, skipping" in again.stdout


@pytest.mark.slow
def test_a_second_run_in_the_same_workspace_is_refused(project, prefect_api):
    (project.root / "slow-train").touch()
    first = project.start(*REPRODUCE, PREFECT_API_URL=prefect_api)
    try:
        while not (project.root / "slow-started").exists():
            assert first.poll() is None, first.stdout.read()
            time.sleep(0.1)
        second = project.python(*REPRODUCE, PREFECT_API_URL=prefect_api)
        assert second.returncode == 1
        assert f"another run is at work here (process {first.pid}" in second.stderr
        other = project.python(*REPRODUCE, "--data", "toy", PREFECT_API_URL=prefect_api)
        assert other.returncode == 0, other.stderr
        assert "qdformer-toy" in other.stdout
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=60)


@pytest.mark.slow
def test_retrain_compares_each_checkpoint_once(project, prefect_api):
    def retrain(score: float) -> str:
        project.set_score(score)
        done = project.python(*RETRAIN, PREFECT_API_URL=prefect_api)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip().splitlines()[-1]

    first = "qdformer-stamps version 1, champion: the first version, with clean/miou_dataset 0.300"
    assert retrain(0.3) == f"Registered: {first}"
    assert retrain(0.3) == f"Nothing changed: {first}"
    refused = "qdformer-stamps version 2, not champion: clean/miou_dataset -0.1000 [-0.1000, -0.1000], expected an "
    assert retrain(0.2).startswith(f"Registered: {refused}interval above +0.0000: failed; snr0/miou_dataset -0.1000")
    assert retrain(0.2).startswith(f"Nothing changed: {refused}")
    promoted = (
        "qdformer-stamps version 3, champion: clean/miou_dataset +0.1000 [+0.1000, +0.1000], expected an interval"
    )
    assert retrain(0.4).startswith(f"Registered: {promoted}")
    champion = record(project).get_model_version_by_alias("qdformer-stamps", "champion")
    assert int(champion.version) == 3
    md5 = subprocess.run(
        ["grep", "-o", "[0-9a-f]*[.]dir", "dvc.lock"], cwd=project.root, capture_output=True, text=True
    )
    assert champion.source.removeprefix("dvc://").split("/")[0] in md5.stdout.split()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_champion_is_evaluated_again_when_the_protocol_changed_and_can_be_rolled_back(project, prefect_api):
    def retrain(score: float):
        project.set_score(score)
        return project.python(*RETRAIN, PREFECT_API_URL=prefect_api)

    assert retrain(0.3).returncode == 0
    project.edit("params.yaml", "  pictures: 12\n  seed: 0", "  pictures: 12\n  seed: 1")  # of the evaluation
    second = retrain(0.4)
    assert "Evaluating the champion, version 1, with the present code and data" in second.stdout
    assert "version 2, champion: clean/miou_dataset +0.1000" in second.stdout
    assert (project.root / ".cache/champion/evaluated").is_file()
    assert "Evaluating the champion" not in retrain(0.5).stdout  # its scores are kept

    rolled = project.python("-m", "pipelines.rollback", "--reason", "too many dogs")
    assert rolled.returncode == 0, rolled.stderr
    assert "qdformer-stamps: version 2 is the champion again, version 3 is withdrawn" in rolled.stdout
    assert "rolled back: too many dogs" in rolled.stdout
    assert "version 3, champion" in (again := retrain(0.5).stdout) and "withdrawn since: too many dogs" in again
    champion = record(project).get_model_version_by_alias("qdformer-stamps", "champion")
    assert int(champion.version) == 2

    project.edit("params.yaml", "  pictures: 12\n  seed: 1", "  pictures: 12\n  seed: 2")
    listing = champion.tags["dvc.model"]
    (project.root / ".dvc/cache/files/md5" / listing[:2] / listing[2:]).unlink()
    lost = retrain(0.6)
    assert lost.returncode == 1 and "Traceback" not in lost.stderr
    assert "the champion, version 2 of qdformer-stamps: models/qdformer is not in DVC's cache" in lost.stderr
    assert int(record(project).get_model_version_by_alias("qdformer-stamps", "champion").version) == 2
    other = project.python("-m", "pipelines.rollback", "--to", "1")
    assert other.returncode == 0, other.stderr
    assert "version 4, champion: clean/miou_dataset +0.3000" in retrain(0.6).stdout


def test_settings_that_are_edited_during_a_stage_are_not_claimed_by_its_result(project, prefect_api):
    """The stage ends with the settings that it began with, and the next run makes the new ones."""
    (project.root / "slow-train").write_text("3")
    process = project.start(*REPRODUCE, PREFECT_API_URL=prefect_api)
    wait_for(project.root / "slow-started", process)
    project.set_score(0.7)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in output
    assert output.endswith(
        "error: params.yaml was edited while stage train ran; its result is kept with the settings that it was made "
        "with. Run the same command again\n"
    )
    assert locked_settings(project.root)["train"]["learning_rate"] == 0.0003
    model = json.loads((project.root / "models/qdformer/model.safetensors").read_text())
    assert model["learning_rate"] == 0.0003
    again = project.python(*REPRODUCE, PREFECT_API_URL=prefect_api)
    assert again.returncode == 0, again.stderr
    assert "Running stage 'train'" in again.stdout and re.search(r"clean +0\.700", again.stdout)
    assert locked_settings(project.root)["train"]["learning_rate"] == 0.0007


@pytest.mark.slow
def test_a_killed_run_leaves_no_process(project):
    (project.root / "slow-train").touch()
    process = project.start(*REPRODUCE)
    wait_for(project.root / "slow-started", process)
    process.kill()
    process.wait()
    (project.root / "slow-train").unlink()
    again = project.python(*REPRODUCE)
    assert again.returncode == 0, again.stderr
    assert "Stage 'download' didn't change, skipping" in again.stdout
    assert left_behind(project.root) == ""


@pytest.mark.parametrize("flow", ["reproduce", "retrain", "sweep"])
def test_an_unreachable_store_is_told_at_once_and_before_any_work(project, flow):
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        for port, reason in ((9, "Connection refused"), (silent.getsockname()[1], "timed out")):
            uri, started = f"http://someone:secret@127.0.0.1:{port}", time.monotonic()
            done = project.python("-m", "pipelines.flows", flow, MLFLOW_TRACKING_URI=uri)
            assert time.monotonic() - started < 15
            assert done.returncode == 1 and reason in done.stderr and "secret" not in done.stderr
            assert done.stderr.startswith(
                f"error: MLFLOW_TRACKING_URI=http://127.0.0.1:{port}: the MLflow store cannot"
            )
            assert done.stderr.count("\n") == 1
    assert not (project.root / "data").exists()


@pytest.mark.parametrize("flow", ["reproduce", "retrain", "sweep"])
def test_a_busy_workspace_is_refused_before_anything_heavy_is_imported(project, flow):
    with workspace_lock(project.root):
        done = project.python("-X", "importtime", "-m", "pipelines.flows", flow)
    assert done.returncode == 1
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    (told,) = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert told.startswith(f"error: {project.root}: another run is at work here (process {os.getpid()}")
    assert "pydantic" in imported and not imported & {"prefect", "mlflow", "ray", "torch", "pandas", "dvc"}


def test_an_up_to_date_pipeline_needs_neither_prefect_nor_mlflow(project, prefect_api):
    first = project.python(*REPRODUCE, PREFECT_API_URL=prefect_api)
    assert first.returncode == 0, first.stderr
    second = project.python("-X", "importtime", *REPRODUCE, PREFECT_API_URL="http://127.0.0.1:9/api")
    assert second.returncode == 0 and "Every stage was up to date" in second.stdout
    imported = {line.rpartition("|")[2].strip() for line in second.stderr.splitlines()}
    assert "pydantic" in imported and not imported & {"prefect", "mlflow", "ray", "torch", "pandas"}
    kept = [line for line in first.stdout.splitlines() if line.startswith(("MLflow record:", "All runs", "clean"))]
    assert len(kept) == 3 and set(kept) <= set(second.stdout.splitlines())
    assert "Test metrics of params.yaml (data set stamps, composed; test split;" in second.stdout


@pytest.mark.slow
def test_a_failed_stage_is_reported_without_dvc_s_own_message(project, prefect_api):
    (project.root / "fail-train").write_text("1")
    done = project.python(*REPRODUCE, PREFECT_API_URL=prefect_api)
    assert done.stderr == "error: train was told to fail\nerror: stage train failed\n"


@pytest.mark.parametrize(
    ("cron", "every", "message"),
    [
        ("99 3 * * *", None, r"CRON=99 3 \* \* \*: not a cron expression; expected minute"),
        ("0 3 * * *", 0.0, "--every 0: not an interval; expected more than 0 seconds"),
    ],
)
def test_a_schedule_that_can_never_run_is_refused(cron, every, message):
    with pytest.raises(InputError, match=message):
        serve_retrain("toy", cron, every)
