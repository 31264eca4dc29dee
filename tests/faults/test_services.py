"""Faults of the services, each really done to real servers, on a pipeline of trivial stages. Each has a time bound."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from tests.helpers.services import FINAL, Stack, wait_until
from tests.pipelines.conftest import Project, make_project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

DEPLOYMENTS = """
deployments:
  - name: default
    entrypoint: pipelines/flows/retrain.py:retrain
    parameters: {data: ""}
    schedules: []
"""
EVERY_10_SECONDS = DEPLOYMENTS.replace("schedules: []", "schedules: [{interval: 10}]")
MODEL = "qdformer-stamps"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[tuple[Project, Stack]]:
    """A small project whose services are up; all tests of this module share it, because a start takes a minute."""
    project = make_project(tmp_path_factory.mktemp("services") / "project")
    (project.root / "prefect.yaml").write_text(DEPLOYMENTS)
    stack = Stack(project.root)
    try:
        stack.up()
        first = stack.wait_for_end(stack.start_run("default"), 120)
        assert first["state_type"] == "COMPLETED", stack.logs()
        yield project, stack
        stack.down()
    finally:
        stack.kill_all()


@pytest.fixture
def stack(place) -> Stack:
    return place[1]


@pytest.fixture
def slow(place) -> Iterator[Project]:
    """The project, whose stages can be made to wait; none waits after the test."""
    yield place[0]
    go_on(place[0])


def hold(project: Project, score: float, stage: str) -> None:
    """Let the next run train, to reach `score`, and wait in `stage`."""
    (project.root / "slow-started").unlink(missing_ok=True)
    project.set_score(score)
    (project.root / f"slow-{stage}").write_text("600")


def begin(project: Project, stack: Stack, score: float, stage: str = "train") -> str:
    """Start a run that has to train, and wait until it is in `stage`, where it stays; return its id."""
    hold(project, score, stage)
    run_id = stack.start_run("default")
    wait_until((project.root / "slow-started").exists, 120, f"run in {stage}")
    return run_id


def go_on(project: Project) -> None:
    """Let the waiting stage end."""
    for path in project.root.glob("slow-*"):
        path.unlink()


def champion(project: Project) -> int:
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    return int(client.get_model_version_by_alias(MODEL, "champion").version)


def versions(project: Project) -> int:
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    return len(client.search_model_versions(f"name = '{MODEL}'"))


def require_next_run(project: Project, stack: Stack, score: float, seconds: float) -> None:
    """The next run ends within the bound, and its better model becomes the champion: none is half registered."""
    go_on(project)
    project.set_score(score)
    before = versions(project)
    ended = stack.wait_for_end(stack.start_run("default"), seconds)
    assert ended["state_type"] == "COMPLETED", stack.log_of(ended["id"]) + stack.logs("worker")
    assert champion(project) == versions(project) == before + 1
    left = [run["state_name"] for run in stack.runs() if run["state_type"] not in FINAL]
    assert left == []


def test_up_twice_and_status(stack):
    before = {service: stack.process(service).pid for service in ("prefect", "mlflow", "worker", "watch")}
    assert stack.up() < 30
    assert {service: stack.process(service).pid for service in before} == before
    status = stack.python("pipelines.services", "status")
    assert status.returncode == 0 and status.stdout.count(" healthy") == 4, status.stdout
    assert "does not answer" not in stack.logs("watch"), "the start of the server is no finding"


def test_a_batch_that_arrives_starts_a_run(place):
    """The starter looks every 15 seconds. The table of this batch cannot be read: the batch is set apart."""
    project, stack = place
    before = {run["id"] for run in stack.runs()}
    (project.root / "incoming" / "bad").mkdir(parents=True)
    (project.root / "incoming" / "bad" / "metadata.csv").write_text("nothing\n")
    (run,) = wait_until(lambda: [one for one in stack.runs() if one["id"] not in before], 60, "new run")
    ended = stack.wait_for_end(run["id"], 60)
    assert ended["state_type"] == "COMPLETED"
    log = stack.log_of(run["id"], "Nothing changed")
    assert "0 accepted, 1 set apart" in log and "Nothing changed: qdformer-stamps version 1, champion" in log
    assert (project.root / "quarantine" / "bad" / "reason.txt").is_file()
    assert "new clips of the default settings: bad; started flow run" in stack.logs("watch")


def test_the_server_of_prefect_is_killed_in_train(slow, stack):
    """Supervisor starts it again. The training goes on meanwhile, and its run ends as if nothing had happened."""
    run_id = begin(slow, stack, 0.31)
    server, stages = stack.process("prefect"), stack.processes("pipelines.steps train")
    server.kill()
    wait_until(lambda: not server.is_running() and stack.runs(), 90, "new server")
    assert stages and all(process.is_running() for process in stages)
    go_on(slow)
    ended = stack.wait_for_end(run_id, 90)
    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert champion(slow) == versions(slow) == 2
    assert "version 2, champion" in stack.log_of(run_id, "Registered")
    require_next_run(slow, stack, 0.315, 90)


@pytest.mark.parametrize(("stage", "score"), [("train", 0.32), ("evaluate", 0.33)])
def test_the_worker_is_killed(slow, stack, stage, score):
    run_id = begin(slow, stack, score, stage)
    stack.process("worker").kill()
    ended = stack.wait_for_end(run_id, 90)
    assert ended["state_type"] == "CRASHED", "found by the watch"
    wait_until(lambda: not stack.processes("pipelines.steps"), 30, "end of the stage")
    require_next_run(slow, stack, score, 120)


def test_two_retrainings_at_once(slow, stack):
    """By hand during a run of the schedule: refused. The other way round: the scheduled run says so and ends."""
    run_id = begin(slow, stack, 0.34)
    refused = stack.python("pipelines.flows", "retrain")
    assert refused.returncode == 1 and "another run is at work here" in refused.stderr
    go_on(slow)
    assert stack.wait_for_end(run_id, 90)["state_type"] == "COMPLETED"
    assert champion(slow) == versions(slow)

    hold(slow, 0.35, "train")
    by_hand = slow.start("-m", "pipelines.flows", "retrain", **stack.ports)
    wait_until((slow.root / "slow-started").exists, 120, "training by hand")
    skipped = stack.wait_for_end(stack.start_run("default"), 90)
    assert skipped["state_name"] == "Skipped" and "another run is at work" in stack.log_of(skipped["id"], "Skipped: ")
    go_on(slow)
    output, _ = by_hand.communicate(timeout=120)
    assert by_hand.returncode == 0 and "champion: clean/miou_dataset" in output, output
    assert champion(slow) == versions(slow)


def test_a_full_disk(slow, stack):
    """The stage cannot write its model: the run fails with the reason, the champion stays, the next run goes on."""
    small = slow.root / "models"
    before = champion(slow)
    slow.set_score(0.36)
    subprocess.run(["rm", "-rf", str(small / "qdformer")], check=True)
    (small / "qdformer").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        ended = stack.wait_for_end(stack.start_run("default"), 90)
        assert ended["state_type"] == "FAILED" and "No space left on device" in stack.logs("worker")
        assert champion(slow) == before == versions(slow)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
    require_next_run(slow, stack, 0.36, 90)


def test_all_processes_are_killed_and_started_again(slow, stack):
    run_id = begin(slow, stack, 0.37)
    stack.kill_all()
    wait_until(lambda: not stack.processes(), 30, "end of all processes")
    go_on(slow)
    stack.up()
    ended = stack.wait_for_end(run_id, 60)
    assert ended["state_type"] == "CRASHED" and "its process has ended without a report" in ended["state"]["message"]
    assert "marked as crashed" in stack.logs("watch")
    require_next_run(slow, stack, 0.37, 90)


def test_a_schedule_of_seconds_fires_and_goes_on_after_the_machine_slept(slow, stack):
    """The clock of processes that were stopped steps over several times of the schedule: one run makes up for them."""
    (slow.root / "prefect.yaml").write_text(EVERY_10_SECONDS)
    stack.process("worker").kill()  # the new one reads the file

    def fired() -> list[dict]:
        return [run for run in stack.runs() if run["auto_scheduled"] and run["state_type"] == "COMPLETED"]

    wait_until(lambda: len(fired()) >= 2, 150, "two scheduled runs")
    before, sleeping = len(fired()), stack.processes()
    for process in sleeping:
        process.suspend()
    time.sleep(90)
    for process in sleeping:
        process.resume()
    wait_until(lambda: len(fired()) > before + 1, 120, "two runs after the sleep")
    told = re.findall(r"(\d+) scheduled runs? (?:are|is) late, since", stack.logs("watch"))
    assert told and max(map(int, told)) > 1
    missed = [run for run in stack.runs() if run["state_type"] == "CANCELLED"]
    assert missed and all("makes up for it" in run["state"]["message"] for run in missed)
