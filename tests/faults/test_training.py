"""Faults of a training through Ray, each really done. Every test states the time within which it must end."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdformer.data.dataset import AVSDataset, build_loader
from qdformer.data.manifest import read_manifest
from qdformer.training.checkpoint import load_model, load_state
from qdformer.training.validation import validate
from tests.helpers.distributed import CPU, Sounds, recipe_with
from tests.helpers.launch import make_inputs
from tests.helpers.runs import SLOW, Run, kill_session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> str:
    """The digest of the model that four epochs on two workers give."""
    run = Run(make_inputs(tmp_path_factory.mktemp("whole")), 4)
    assert run.end(120) == 0, run.text
    return run.model


def test_a_killed_worker_is_replaced_and_the_model_is_the_same(tmp_path, uninterrupted):
    """Row 2: the training continues within 60 s of the death, after the last finished epoch."""
    run = Run(make_inputs(tmp_path), 4)
    run.wait_for("epoch 2/4", 120)
    victim = run.workers()[1]
    killed = time.monotonic()
    victim.kill()
    run.wait_for("resumed after epoch", 60)
    print(f"training again {time.monotonic() - killed:.0f} s after the kill")
    assert run.end(120) == 0, run.text
    assert "died" in run.text and run.model == uninterrupted


def test_a_run_killed_twice_gives_the_same_model(tmp_path, uninterrupted):
    """Rows 4 and 21: killed in the middle, and after the last epoch; the third start takes seconds."""
    root = make_inputs(tmp_path)
    first = Run(root, 4)
    first.wait_for("epoch 2/4", 120)
    kill_session(first)
    second = Run(root, 4)
    second.wait_for("resumed after epoch", 120)
    assert second.end(120) == 0, second.text
    assert "epoch 1/4" not in second.text and second.model == uninterrupted
    (root / "out" / "model.safetensors").unlink()  # as DVC does before a rerun
    third = Run(root, 4)
    assert third.end(30) == 0 and "finished before" in third.text and third.model == uninterrupted


def test_a_run_killed_within_an_epoch_continues_there(tmp_path, uninterrupted):
    """A checkpoint after every step, and a process of its own that loads the data."""
    root = make_inputs(tmp_path)
    settings = {"checkpoint_minutes": 1e-6}
    first = Run(root, 4, settings=settings, QDFORMER_LOADER_WORKERS="1")
    wait_for_checkpoints(root, 2)
    kill_session(first)
    newest = sorted((root / "storage").glob("*/checkpoint_*/sha256.json"))[-1].parent
    if load_state(newest)["scheduler"]["last_epoch"] % 3 == 0:  # the end of an epoch of three steps
        shutil.rmtree(newest)
    second = Run(root, 4, settings=settings, QDFORMER_LOADER_WORKERS="1")
    assert second.end(120) == 0, second.text
    resumed = re.search(r"resumed after epoch (\d) of 4, step (\d+)", second.text)
    assert resumed and int(resumed[2]) not in (0, 3 * int(resumed[1])), second.text
    assert second.model == uninterrupted


def test_a_damaged_checkpoint_is_named_and_the_older_one_is_used(tmp_path, uninterrupted):
    """Row 3: one bit flipped in the newest state, then its end cut off; Ray's list of the checkpoints emptied."""
    root = make_inputs(tmp_path)
    text = ""
    for damage in (flip_a_bit, cut_off):
        run = Run(root, 4)
        run.wait_for("epoch 2/4" if damage is flip_a_bit else "epoch 3/4", 120)
        wait_for_checkpoints(root, 2)
        kill_session(run)
        text += run.text
        *_, older, newest = sorted((root / "storage").glob("*/checkpoint_*/state.pt"))
        damage(newest)
        (newest.parents[1] / "checkpoint_manager_snapshot.json").write_text("")
    last = Run(root, 4)
    assert last.end(120) == 0, last.text
    assert f"{newest}: damaged" in last.text and "resumed after epoch" in last.text
    assert "epoch 1/4" not in last.text and last.model == uninterrupted


def test_a_full_disk_ends_the_run_with_the_reason(tmp_path):
    """Rows 5 and 6: rank 0 cannot write its checkpoint, while rank 1 waits for it inside `report`."""
    root = make_inputs(tmp_path)
    storage = root / "storage"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(storage)], capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    try:
        run = Run(root, 2)
        assert run.end(120) == 1
        assert "error: the training failed: worker 0" in run.text
        assert "No space left on device" in run.text or "file write failed" in run.text
        assert not (root / "out").exists() and "Traceback" not in run.text
    finally:
        subprocess.run(["umount", "--lazy", str(storage)], check=True)


def test_a_project_in_a_path_with_a_space_and_an_umlaut(tmp_path):
    """Row 25: the interpreter, the data and the checkpoints lie there."""
    place = tmp_path / "my prüjects"
    place.mkdir()
    (place / "venv").symlink_to(sys.prefix)
    run = Run(make_inputs(place), 1, workers=1, python=str(place / "venv" / "bin" / "python"))
    assert run.end(120) == 0, run.text
    assert run.model


def test_the_best_epoch_on_val_is_kept(tmp_path):
    root = make_inputs(tmp_path, val=3)
    run = Run(root, 3, settings={"validate_every": 1, "select": "best", "learning_rate": 0.01})
    assert run.end(120) == 0, run.text
    shown = [float(score) for score in re.findall(r"mIoU on val (\d\.\d+)", run.text)]
    assert len(shown) == 3
    model, classes = load_model(root / "out" / "model.safetensors")
    recipe = recipe_with()
    manifest = read_manifest(root / "data")
    data = AVSDataset(manifest[manifest["split"] == "val"], Sounds(), recipe.image_size)
    scores = validate(model, model.build_criterion(recipe.loss), build_loader(data, recipe.batch_size), CPU)
    assert scores["val_miou_dataset"] == pytest.approx(max(shown), abs=1e-3)


def test_a_stopped_worker_ends_the_run(tmp_path):
    """Row 7, with a limit of 20 s in place of 300 s."""
    run = Run(make_inputs(tmp_path), 200, QDFORMER_HANG_LIMIT="20")
    run.wait_for("epoch 2/200", 120)
    victim = run.workers()[1]
    victim.suspend()
    try:
        assert run.end(120) == 1
    finally:
        if victim.is_running():
            victim.kill()
    assert "error: the training failed" in run.text


def test_a_loss_that_is_not_finite_ends_the_run_with_the_clip(tmp_path):
    """Row 8: one line, no second attempt, and no checkpoint of a poisoned model."""
    run = Run(make_inputs(tmp_path, poisoned="clip5"), 2)
    assert run.end(90) == 1
    assert "FloatingPointError" in run.text and "clip5" in run.text and "epoch 1, step" in run.text
    assert "restarting" not in run.text and "Traceback" not in run.text
    assert not list((tmp_path / "storage").glob("*/checkpoint_*/state.pt"))


def test_more_workers_than_the_machine_has_are_refused_at_once(tmp_path):
    """Row 24."""
    run = Run(make_inputs(tmp_path), 2, workers=64, QDFORMER_CPUS_PER_WORKER="64")
    assert run.end(40) == 1
    assert "QDFORMER_WORKERS: 64 workers with 64 CPUs each need 4096 CPUs, but the Ray cluster has" in run.text


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def wait_for_checkpoints(root: Path, count: int) -> None:
    """Wait until Ray has copied `count` checkpoints."""
    deadline = time.monotonic() + 60 * SLOW
    while len(list((root / "storage").glob("*/checkpoint_*/sha256.json"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)
