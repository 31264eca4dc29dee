"""Where a training runs, which checkpoint it continues from, and the reason that the user reads; without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")

from ray.exceptions import RayActorError  # noqa: E402
from ray.train import WorkerGroupError  # noqa: E402
from ray.train.v2._internal.exceptions import WorkerHealthCheckTimeoutError  # noqa: E402

from qdformer.config.settings import SettingsError, load_settings, parse_settings  # noqa: E402
from qdformer.training import launch  # noqa: E402
from qdformer.training.checkpoint import save_state, usable_checkpoints  # noqa: E402
from qdformer.training.launch import Shape, TrainingError  # noqa: E402
from qdformer.training.worker import check_shared_folders  # noqa: E402
from qdformer.utils.errors import InputError  # noqa: E402
from tests.helpers import PROJECT  # noqa: E402

TWO_CPUS = [{"CPU": 2.0}]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("WORKERS", "CPUS_PER_WORKER", "GPUS_PER_WORKER", "LOADER_WORKERS"):
        monkeypatch.delenv(f"QDFORMER_{name}", raising=False)


def test_the_environment_gives_the_shape(monkeypatch):
    assert Shape.from_environment(TWO_CPUS, 4) == Shape(1, 2, 0.0)
    assert Shape.from_environment([{"CPU": 16.0, "GPU": 4.0}], 4) == Shape(4, 4, 1.0, loader_workers=3)
    assert Shape.from_environment([{"CPU": 4.0}, {"CPU": 2.0}], 4) == Shape(1, 4, 0.0), "a worker runs on one node"
    monkeypatch.setenv("QDFORMER_WORKERS", "2")
    assert Shape.from_environment(TWO_CPUS, 4) == Shape(2, 1, 0.0)
    assert Shape.from_environment([{"CPU": 1.0}, {"CPU": 3.0}], 4) == Shape(2, 1, 0.0)
    assert Shape.from_environment([{"CPU": 4.0}, {"CPU": 2.0}], 4) == Shape(2, 2, 0.0)
    monkeypatch.setenv("QDFORMER_LOADER_WORKERS", "1")
    assert Shape.from_environment(TWO_CPUS, 4) == Shape(2, 1, 0.0, loader_workers=1)
    monkeypatch.setenv("QDFORMER_LOADER_WORKERS", "-1")
    with pytest.raises(InputError, match="QDFORMER_LOADER_WORKERS: expected a whole number of at least 0, not '-1'"):
        Shape.from_environment(TWO_CPUS, 4)


def test_more_workers_than_the_cluster_has_are_refused_with_both_numbers(monkeypatch):
    monkeypatch.setenv("QDFORMER_WORKERS", "3")
    with pytest.raises(InputError, match=r"QDFORMER_WORKERS: 3 workers with 1 CPUs each need 3 CPUs, .* has 2"):
        Shape.from_environment(TWO_CPUS, 4)
    with pytest.raises(InputError, match=r"3 workers with 1 GPUs each need 3 GPUs, .* has 2"):
        Shape.from_environment([{"CPU": 8.0, "GPU": 1.0}] * 2, 4)
    with pytest.raises(InputError, match="2 clips cannot be divided among 3 workers"):
        Shape.from_environment([{"CPU": 8.0}], 2)
    monkeypatch.setenv("QDFORMER_CPUS_PER_WORKER", "2")
    with pytest.raises(InputError, match="3 workers with 2 CPUs .* 2 nodes of the Ray cluster have place for 2"):
        Shape.from_environment([{"CPU": 3.0}] * 2, 4)


def test_a_cluster_that_lost_a_node_has_place_for_fewer_workers():
    assert Shape(4, 2, 0.0).places([{"CPU": 5.0}, {"CPU": 1.0}, {}]) == 2
    assert Shape(4, 1, 0.5).places([{"CPU": 8.0, "GPU": 1.0}, {"CPU": 8.0}]) == 2


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5", "nan"])
def test_a_variable_that_is_no_count_is_one_line(monkeypatch, value):
    monkeypatch.setenv("QDFORMER_WORKERS", value)
    with pytest.raises(InputError, match=f"QDFORMER_WORKERS: expected a whole number of at least 1, not '{value}'"):
        Shape.from_environment(TWO_CPUS, 4)


def test_the_worker_that_failed_first_gives_the_reason():
    error = WorkerGroupError(
        "long text", {0: RuntimeError("Connection closed by peer"), 1: FloatingPointError("loss is nan, clips a, b")}
    )
    assert not launch._dead_workers(error)
    assert launch._reason(error, 60) == "worker 1: FloatingPointError: loss is nan, clips a, b"
    dead = WorkerGroupError("long text", {0: RuntimeError("Connection closed by peer"), 1: RayActorError()})
    assert launch._dead_workers(dead) == "worker 1" and launch._reason(dead, 60).startswith("worker 1 died")
    noticed_first = WorkerGroupError("long text", {1: RuntimeError("gloo: Read error: Connection reset by peer")})
    assert launch._dead_workers(noticed_first) == "a worker"
    wrong = WorkerGroupError("long text", {0: InputError("clip a: no audio features")})
    assert launch._reason(wrong, 60) == "worker 0: clip a: no audio features"


def test_a_worker_that_hangs_is_named_with_the_limit():
    answer = WorkerGroupError(
        "long text", {0: RuntimeError("Timed out waiting 60 s"), 1: WorkerHealthCheckTimeoutError("x")}
    )
    assert not launch._dead_workers(answer)
    assert launch._reason(answer, 60) == "worker 1 did not answer for 60 s (QDFORMER_HANG_LIMIT)"
    waiting = WorkerGroupError("long text", {0: RuntimeError("gloo: Timed out waiting 60 s for recv")})
    assert launch._reason(waiting, 60).startswith("worker 0 waited for another worker longer than 60 s (QDFORMER_HANG")


def write_checkpoints(run: Path, count: int = 3) -> list[Path]:
    folders = [run / f"checkpoint_2026-11-25_03-0{index}-00" for index in range(count)]
    for index, folder in enumerate(folders):
        folder.mkdir(parents=True)
        (folder / "history.json").write_text(json.dumps([{"epoch": 1}] * (index + 1)))
        (folder / "model.safetensors").write_bytes(bytes([index]))
        save_state(folder, {"history": [index]})
    return folders


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_damaged_checkpoints_are_named_and_the_older_one_is_used(tmp_path):
    oldest, cut, interrupted, newest = write_checkpoints(tmp_path, 4)
    assert usable_checkpoints(tmp_path) == [newest, interrupted, cut, oldest]
    flip_a_bit(newest / "state.pt")
    (interrupted / "model.safetensors").unlink()  # the writer was killed while it copied the files
    (cut / "sha256.json").write_text('{"state.pt"')
    lines: list[str] = []
    assert usable_checkpoints(tmp_path, lines.append) == [oldest]
    assert f"{newest / 'state.pt'}: damaged" in lines[0]
    assert f"{interrupted / 'model.safetensors'}: missing" in lines[1]
    assert f"{cut / 'sha256.json'}: damaged" in lines[2] and len(lines) == 3
    assert usable_checkpoints(tmp_path, lines.append) == [oldest] and len(lines) == 3, "they are told of once"


class FinishedJob:
    """A job of three epochs in a folder with checkpoints."""

    def __init__(self, storage: Path, inputs: dict[str, str]) -> None:
        self.storage, self._inputs = storage, inputs
        self.inputs_file = storage / "inputs.json"
        self.recipe = load_settings(PROJECT / "params.yaml").train.model_copy(update={"epochs": 3})

    def inputs(self) -> dict[str, str]:
        return self._inputs


def test_a_finished_training_is_not_repeated_until_its_inputs_change(tmp_path, monkeypatch, capsys):
    storage = tmp_path / "storage"
    storage.mkdir()
    job = FinishedJob(storage, {"the settings of train": "a", "the data set": "b"})
    newest = write_checkpoints(launch._prepare(job))[-1]
    for _ in range(2):
        history = launch.launch(job, tmp_path / "out")
        assert len(history) == 3 and (tmp_path / "out" / "model.safetensors").read_bytes() == b"\2"
    assert "finished before" in capsys.readouterr().out
    assert list(newest.parent.iterdir()) == [newest]

    class Started(Exception):
        pass

    def start():
        raise Started

    monkeypatch.setattr(launch, "ray_session", start)
    with pytest.raises(Started):
        launch.launch(FinishedJob(storage, {"the settings of train": "a", "the data set": "c"}), tmp_path / "out")
    assert "started afresh, because this changed: the data set" in capsys.readouterr().out
    assert not newest.exists()


def test_no_usable_checkpoint_after_a_training_is_an_error(tmp_path, monkeypatch):
    job = FinishedJob(tmp_path, {"the data set": "b"})
    monkeypatch.setattr(launch, "ray_session", launch.contextlib.nullcontext)
    monkeypatch.setattr(launch, "cluster_nodes", lambda: TWO_CPUS)
    monkeypatch.setattr(launch, "_train", lambda *_: None)
    with pytest.raises(TrainingError, match="no usable checkpoint"):
        launch.launch(job, tmp_path / "out")


def test_switches_that_leave_a_part_without_a_loss_are_refused():
    values = load_settings(PROJECT / "params.yaml").model_dump()
    values["train"]["model"] |= {"quantize": False, "recombine": False, "calibrate": True}
    parse_settings(values)  # the class loss of the tokens trains it
    values["train"]["loss"]["token_cls"] = 0.0
    with pytest.raises(SettingsError, match=r"train: model.calibrate: true without model.quantize and model.recombine"):
        parse_settings(values)


def test_a_node_that_lacks_the_shared_folders_is_named(tmp_path):
    job = FinishedJob(tmp_path, {})
    job.dataset, job.features = tmp_path, tmp_path / "clean.h5"
    with pytest.raises(InputError, match=r"clean\.h5: not found on the node .*; data set, features and checkpoints"):
        check_shared_folders(job)
    for path in (job.features, job.inputs_file):
        path.write_text("")
    check_shared_folders(job)
