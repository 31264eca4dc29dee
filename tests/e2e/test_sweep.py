"""`make sweep` on `toy` in a copy of the checkout: two rows with two seeds, trained for one epoch each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import yaml

ROWS = {
    "baseline": ["model.decompose=false", "model.quantize=false", "model.recombine=false", "model.calibrate=false"],
    "full": [],
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_a_sweep_trains_compares_and_finishes(checkout):
    def sweep() -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PREFECT", "RAY"))}
        environment["PYTHONPATH"] = str(checkout)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = [sys.executable, "-m", "pipelines.flows", "sweep", "--data", "toy", "--grid", "pair", "--seeds", "2"]
        done = subprocess.run(
            [*command, "--epochs", "1"], cwd=checkout, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    workspace = checkout / "workspaces" / "toy"
    workspace.mkdir(parents=True)
    (workspace / "overrides.yaml").write_text(yaml.safe_dump({"sweep": {"grids": {"pair": ROWS}}}))
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
