"""The stage `features` as DVC runs it: in its process, on Ray, and on a full disk."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
import soundfile
import torch

from qdformer.audio.features.store import FeatureStore
from qdformer.audio.noise.mixing import MANIFEST_COLUMNS
from qdformer.audio.vggish.model import VGGish, save_vggish
from tests.helpers import PROJECT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    """Six clips, one of them not an audio file, and VGGish with random weights."""
    root = tmp_path_factory.mktemp("workspace")
    shutil.copy(PROJECT / "params.yaml", root / "params.yaml")
    torch.manual_seed(0)
    save_vggish(VGGish(), root / "models" / "vggish" / "vggish.safetensors")
    folder = root / "data" / "mixed" / "clean"
    folder.mkdir(parents=True)
    rows = []
    for index in range(6):
        soundfile.write(folder / f"{index}.flac", np.random.default_rng(index).uniform(-0.5, 0.5, 32000), 16000)
        rows.append({"uid": f"clip{index}", "split": "test", "frames": 2, "audio": f"{index}.flac"})
    (folder / "3.flac").write_bytes(b"no sound")
    pandas.DataFrame(rows, columns=list(MANIFEST_COLUMNS)).to_csv(folder / "manifest.csv", index=False)
    return root


def run(workspace: Path, limit: int | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the stage; `limit` is the largest size of a file in bytes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        [sys.executable, "-m", "pipelines.stages.features", "clean"],
        cwd=workspace,
        env=kept | {"PYTHONPATH": str(PROJECT)} | environment,
        preexec_fn=set_limit if limit else None,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_bad_clip_fails_the_stage_unless_it_is_allowed(workspace):
    done = run(workspace)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "1 of 6 clips cannot be used" in done.stderr and "clip clip3: " in done.stderr
    assert not (workspace / "data" / "features" / "clean.h5").exists()
    params = workspace / "params.yaml"
    params.write_text(params.read_text().replace("bad_clips: 0.0", "bad_clips: 0.2"))
    done = run(workspace)
    assert done.returncode == 0, done.stderr
    assert "left out: clip clip3: " in done.stdout
    assert "clean: 5 clips, 5 of them from an earlier run, 1 left out" in done.stdout
    assert FeatureStore(workspace / "data" / "features" / "clean.h5").left_out == {"clip3"}


def test_ray_writes_the_same_bytes(workspace):
    """Depends on the run above."""
    path = workspace / "data" / "features" / "clean.h5"
    before = path.read_bytes()
    path.unlink()
    done = run(workspace, RAY_ADDRESS="local")
    assert done.returncode == 0, done.stderr
    assert "clean: 5 clips, 1 left out" in done.stdout
    assert path.read_bytes() == before


@pytest.mark.parametrize("limit", [3000, 10_000])  # too small for the journal, and for the HDF5 file
def test_a_full_disk_is_an_error_and_keeps_the_old_file(workspace, limit):
    """Depends on the runs above."""
    path = workspace / "data" / "features" / "clean.h5"
    before = path.read_bytes()
    assert len(before) > limit
    done = run(workspace, limit)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "cannot be written: File too large" in done.stderr
    assert "clean: 5 clips" not in done.stdout
    assert path.read_bytes() == before
