"""The README's main command on `toy` in a copy of the checkout: the first run computes all, the second nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from qdformer.evaluation.result import DECOMPOSITION
from qdformer.metrics.decomposition import SOUNDING_METRICS

CONDITIONS = ("clean", "snr20", "snr10", "snr0", "snr-5", "shuffled", "silence", "noise", "offscreen", "untrained")
SCORES = ("miou_dataset", "miou_per_frame", "avsbench_j", "avsbench_f", "davis_j", "davis_f", "davis_jf")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def reproduce(checkout: Path) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PREFECT", "RAY"))}
    environment["PYTHONPATH"] = str(checkout)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.flows", "reproduce", "--data", "toy"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def git_status(checkout: Path) -> str:
    return subprocess.run(["git", "status", "--porcelain"], cwd=checkout, capture_output=True, text=True).stdout


def test_reproduce_computes_all_then_nothing(checkout):
    first = reproduce(checkout)
    assert "Running stage 'train'" in first
    reports = checkout / "workspaces" / "toy" / "reports"
    scores = {}
    for condition in CONDITIONS:
        figures = json.loads((reports / "metrics" / f"{condition}.json").read_text())
        robust = {"fpr", "g_miou"} if condition in ("silence", "noise", "offscreen") else set()
        assert {key for key in figures if not key.endswith(DECOMPOSITION)} == {*SCORES, "clips", *robust}
        prefixes = ("", "probe_", "probe_visible_")
        assert {*DECOMPOSITION, *(prefix + key for prefix in prefixes for key in SOUNDING_METRICS)} <= set(figures)
        defined = ("sounding_exact_2", "sounding_map", "codes_2", "code_nmi", "source_token_share")
        assert all(figures[key] >= 0 for key in (*defined, "probe_sounding_exact_2", "probe_visible_sounding_map"))
        assert all(0 <= figures[name] <= 1 for name in (*SCORES, *robust))
        assert condition in first
        scores[condition] = figures
    assert scores["clean"]["probe_visible_sounding_map"] > scores["clean"]["probe_sounding_map"] > 0.5
    assert "Frames with two sounding classes, both predicted: the model" in first
    # Shuffled sound may be of the right class by chance: the measured ratio is 1.6 to 2.4, by the kind of machine.
    for control, ratio in {"shuffled": 1.25, "silence": 2.0, "untrained": 2.0}.items():
        for score in ("miou_dataset", "davis_jf"):
            assert scores["clean"][score] > ratio * scores[control][score], (control, score)
    for picture in ("pictures", "robustness", "classes", "confusion", "tokens", "codebook", "training"):
        assert (reports / "figures" / f"{picture}.png").stat().st_size > 10_000
    tables = {name: pandas.read_csv(reports / f"{name}.csv") for name in ("clips", "sources", "negatives", "confusion")}
    written = tables["clips"].fillna({"classes": ""})  # CSV reads back an empty text as none
    pandas.testing.assert_frame_equal(pandas.read_parquet(reports / "clips.parquet"), written, check_dtype=False)
    assert len(tables["clips"]) == len(CONDITIONS) * 16 and set(tables["sources"]["by"]) == {"sources", "off_screen"}
    assert tables["negatives"]["condition"].tolist() == ["silence", "noise", "offscreen", "all"]
    pictures = np.load(reports / "pictures.npz")
    shown = [name.removesuffix("/images") for name in pictures if name.endswith("/images")]
    assert len(shown) == 4
    for uid in shown:
        images, truth, prediction, class_probs = (
            pictures[f"{uid}/{part}"] for part in ("images", "truth", "prediction", "class_probs")
        )
        assert images.shape == (*truth.shape, 3) and truth.shape == prediction.shape == (3, 64, 64)
        assert images.dtype == truth.dtype == prediction.dtype == np.uint8 and class_probs.dtype == np.float32
        assert class_probs.shape == (3, len(tables["confusion"]) - 1)
    assert (checkout / "mlflow.db").is_file()
    assert git_status(checkout) == "", "DATA=toy must leave every tracked file as it is"
    lock = (checkout / "workspaces" / "toy" / "dvc.lock").read_bytes()

    second = reproduce(checkout)
    assert "Running stage" not in second
    assert (checkout / "workspaces" / "toy" / "dvc.lock").read_bytes() == lock


def test_a_remote_saves_a_fresh_clone_all_computing(checkout, tmp_path):
    """Depends on the run above. Metrics are in Git; all other outs come from the remote."""
    reproduce(checkout)
    workspace = checkout / "workspaces" / "toy"

    def dvc(*arguments: str) -> str:
        command = [str(Path(sys.executable).with_name("dvc")), *arguments]
        done = subprocess.run(command, cwd=workspace, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    dvc("remote", "add", "--local", "--default", "store", str(tmp_path / "store"))
    dvc("push")
    for computed in (checkout / ".dvc" / "cache", workspace / "data", workspace / "models"):
        shutil.rmtree(computed)
    dvc("pull")
    assert (workspace / "models" / "qdformer" / "model.safetensors").is_file()
    assert "Running stage" not in dvc("repro")
