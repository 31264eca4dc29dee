"""The presets of the published sets, from archives of small fake ones to their metrics, as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from qdformer.audio.vggish import VGGish
from qdformer.digests import file_sha256

SMALL = {
    "train": {
        "epochs": 1,
        "image_size": 64,
        "model": {"width": 32, "heads": 4, "ffn_width": 64, "encoder_layers": 1, "decoder_layers": 1, "codes": 16},
    },
    "evaluate": {"bootstrap": 50, "pictures": 2},
}
CLIPS = {"s4": 3, "ms3": 3, "avss": 9}  # of a split: three for each subset
SCORES = ("miou_dataset", "avsbench_j", "davis_jf")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", CLIPS)
def test_a_preset_reaches_a_metric(checkout, tmp_path, kind):
    def python(*arguments: str) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PREFECT", "RAY"))}
        environment["PYTHONPATH"] = str(checkout)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    log_mel = ["--log-mel"] if kind == "ms3" else []
    python("tests/fake_avsbench.py", kind, str(tmp_path / "fake"), "--clips", "3", *log_mel)
    archive = tmp_path / f"{kind}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "fake", "release")
    torch.manual_seed(0)
    torch.save(VGGish().state_dict(), tmp_path / "vggish.pth")
    official = {
        "official_source": str(tmp_path / "vggish.pth"),
        "official_sha256": file_sha256(tmp_path / "vggish.pth"),
    }
    workspace = checkout / "workspaces" / kind
    workspace.mkdir(parents=True)
    (workspace / "own.yaml").write_text(yaml.safe_dump({"pretrain": official, **SMALL}))

    told = python("-m", "pipelines.flows.data", "--data", kind, "--source", str(archive))
    assert f"make repro DATA={kind}" in told
    about = json.loads((workspace / "data" / "dataset" / "dataset.json").read_text())
    assert about["kind"] == kind and about["clips"] == dict.fromkeys(("train", "val", "test"), CLIPS[kind])
    assert about["sources"] == [{"name": archive.name, "sha256": file_sha256(archive)}]

    told = python("-m", "pipelines.flows.reproduce", "--data", kind)
    assert "Running stage 'download'" not in told and "Running stage 'train'" in told
    assert f"test split, published; {'avss' if kind == 'avss' else 'avs'}; longest" in told
    for condition in ("clean", "shuffled", "silence", "untrained"):
        figures = json.loads((workspace / "reports" / "metrics" / f"{condition}.json").read_text())
        assert figures["clips"] == CLIPS[kind] and all(0 <= figures[name] <= 1 for name in SCORES)
    assert "Running stage" not in python("-m", "pipelines.flows.reproduce", "--data", kind)
