"""`make sweep` on `toy` in a copy of the checkout: two rows with two seeds, trained for one epoch each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import yaml

from qdformer.audio.features.store import FeatureStore

ROWS = {
    "baseline": ["model.decompose=false", "model.quantize=false", "model.recombine=false", "model.calibrate=false"],
    "full": [],
}
SEPARATED = ["model.separate=true", *ROWS["baseline"], "separate.steps=3", "separate.batch_size=2"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def run_sweep(checkout: Path, grid: str, seeds: int) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PREFECT", "RAY"))}
    environment["PYTHONPATH"] = str(checkout)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "pipelines.flows", "sweep", "--data", "toy", "--grid", grid, "--seeds", str(seeds)]
    done = subprocess.run([*command, "--epochs", "1"], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def workspace(checkout) -> Path:
    folder = checkout / "workspaces" / "toy"
    folder.mkdir(parents=True)
    grids = {"pair": ROWS, "separation": {"separated": SEPARATED}}
    (folder / "overrides.yaml").write_text(yaml.safe_dump({"sweep": {"grids": grids}}))
    return folder


def test_a_row_is_trained_and_evaluated_on_separated_tracks(checkout, workspace):
    out = run_sweep(checkout, "separation", seeds=1)
    assert "SI-SDR improvement on new mixtures of training recordings:" in out and "separated, seed 0: finished" in out
    row = workspace / "sweeps" / "separation" / "separated"
    record = json.loads((row / "models" / "separator" / "record.json").read_text())
    assert record["steps"] == 3 and record["si_sdri_seen_db"] is not None
    names = ("clean", "snr20", "snr10", "snr0", "snr-5")
    for name in names:
        tracks = FeatureStore(row / "data" / "separated" / f"{name}.h5", separator=record["sha256"])
        mixed = FeatureStore(workspace / "data" / "features" / f"{name}.h5", separator="")
        assert set(tracks) == set(mixed) and tracks["test-0000"].shape == (len(mixed["test-0000"]), 2, 128)
    table = pandas.read_csv(workspace / "reports" / "sweeps" / "separation.csv")
    assert table.loc[table["metric"] == "miou_dataset", "value"].notna().sum() == len(names)
    again = run_sweep(checkout, "separation", seeds=1)
    assert "1 cells, all of them finished before" in again


def test_a_sweep_trains_compares_and_finishes(checkout, workspace):
    def sweep() -> str:
        return run_sweep(checkout, "pair", seeds=2)

    first = sweep()
    assert "4 cells to run" in first and first.count("Ray session") == 1
    assert all(f"{row}, seed {seed}: finished" in first for row in ROWS for seed in (0, 1))
    assert re.search(r"baseline +2 of 2 +0\.\d+ \[0\.\d+, 0\.\d+\] +[+-]0\.\d+ \[[+-]0\.\d+, [+-]0\.\d+\]", first)
    table = pandas.read_csv(workspace / "reports" / "sweeps" / "pair.csv")
    scores = table[table["metric"] == "miou_dataset"]
    assert len(scores) == 2 * 5 and (scores["seeds"] == 2).all()
    assert scores["value"].between(scores["low"], scores["high"]).all() and (scores["low"] < scores["high"]).all()
    tokens = table[table["metric"].isin(["token_cosine_frame", "code_nmi"])].set_index("row")
    assert tokens.loc["baseline", "value"].isna().all() and tokens.loc["full", "value"].notna().any()
    assert (table["metric"] == "miou_dataset_sources_2").any()
    assert (workspace / "reports" / "sweeps" / "pair.png").stat().st_size > 10_000
    cells = [workspace / "sweeps" / "pair" / row / f"seed-{seed}" for row in ROWS for seed in (0, 1)]
    weights = {(cell / "models" / "qdformer" / "model.safetensors").read_bytes() for cell in cells}
    assert len(weights) == 4
    status = [str(Path(sys.executable).with_name("dvc")), "status", "sweeps/pair/dvc.yaml"]
    assert "up to date" in subprocess.run(status, cwd=workspace, capture_output=True, text=True).stdout

    started = time.monotonic()
    assert "4 cells, all of them finished before" in sweep()
    assert time.monotonic() - started < 60  # 15 s on an idle machine
