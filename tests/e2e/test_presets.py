"""The presets of the published data sets, run as a user does on archives of small imitations, up to the metrics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import safetensors
import torch
import yaml

from qdformer.audio.vggish.model import VGGish
from qdformer.utils.digests import file_sha256
from tests.helpers.published import small_avsegformer, value, write_checkpoint

MODEL = {"hidden_dim": 32, "num_heads": 4, "ffn_dim": 64, "encoder_layers": 1, "decoder_layers": 1, "codebook_size": 16}
SMALL = {"train": {"epochs": 1, "image_size": 64, "model": MODEL}, "evaluate": {"bootstrap": 50, "pictures": 2}}
CLIPS = {"s4": 3, "ms3": 3, "avss": 9}  # clips of a split: three of each subset
SCORES = ("miou_dataset", "avsbench_j", "davis_jf")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def resnet50(tmp_path_factory) -> dict[str, str]:
    """Settings that name a file of random ResNet-50 weights."""
    from transformers import ResNetForImageClassification

    folder = tmp_path_factory.mktemp("resnet-50")
    torch.manual_seed(0)
    network = ResNetForImageClassification._from_config(ResNetForImageClassification.config_class())
    network.save_pretrained(folder)
    return {"backbone_weights": str(folder), "backbone_sha256": file_sha256(folder / "model.safetensors")}


@pytest.mark.parametrize("kind", CLIPS)
def test_a_preset_and_its_twin_with_swin_reach_a_metric(checkout, resnet50, tmp_path, kind):
    def python(*arguments: str | Path) -> str:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PREFECT", "RAY"))}
        environment["PYTHONPATH"] = str(checkout)
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    log_mel = ["--log-mel"] if kind == "ms3" else []
    python("-m", "tests.helpers.avsbench", kind, str(tmp_path / "fake"), "--clips", "3", *log_mel)
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
    small = {**SMALL, "train": {**SMALL["train"], "model": {**MODEL, **resnet50}}}
    (workspace / "overrides.yaml").write_text(yaml.safe_dump({"pretrain": official, **small}))

    output = python("-m", "pipelines.flows", "data", "--data", kind, "--source", str(archive))
    assert f"make repro DATA={kind}" in output
    about = json.loads((workspace / "data" / "dataset" / "dataset.json").read_text())
    assert about["kind"] == kind and about["clips"] == dict.fromkeys(("train", "val", "test"), CLIPS[kind])
    assert about["sources"] == [{"name": archive.name, "sha256": file_sha256(archive)}]

    output = python("-m", "pipelines.flows", "reproduce", "--data", kind)
    assert "Running stage 'download'" not in output and "Running stage 'train'" in output
    assert f"published; test split; {'avss' if kind == 'avss' else 'avs'}; longest" in output
    for condition in ("clean", "shuffled", "silence", "untrained"):
        figures = json.loads((workspace / "reports" / "metrics" / f"{condition}.json").read_text())
        assert figures["clips"] == CLIPS[kind] and all(0 <= figures[name] <= 1 for name in SCORES)
    assert "Running stage" not in python("-m", "pipelines.flows", "reproduce", "--data", kind)
    assert backbone(workspace) == ("resnet50", resnet50["backbone_weights"])

    twin = workspace.with_name(f"{kind}-swin")
    twin.mkdir()
    (twin / "overrides.yaml").write_text(yaml.safe_dump({"train": {"model": {"backbone_weights": None}}}))
    output = python("-m", "pipelines.flows", "reproduce", "--data", twin.name)
    assert re.findall("Running stage '(.+)'", output) == ["train", "evaluate"]  # the rest came from the cache
    figures = json.loads((twin / "reports" / "metrics" / "clean.json").read_text())
    assert figures["clips"] == CLIPS[kind] and all(0 <= figures[name] <= 1 for name in SCORES)
    assert backbone(twin) == ("swin_tiny", None)

    method = workspace.with_name(f"{kind}-avsegformer")
    method.mkdir()
    layers = {f"{part}_layers": 1 for part in ("generator", "encoder", "decoder")}
    (method / "overrides.yaml").write_text(
        yaml.safe_dump({"train": {"image_size": 64, "model": {"num_queries": 12, **layers}}})
    )
    shapes = small_avsegformer("resnet50", 70 if kind == "avss" else 1, 12)
    file = write_checkpoint(
        tmp_path / "best.pth", {name: value(name, shape) for name, shape in shapes.items() if "vggish" not in name}
    )
    output = python(
        "-m", "pipelines.flows", "evaluate", "--data", kind, "--method", "avsegformer", "--checkpoint", file
    )
    assert "Running stage 'train'" not in output and "best.pth. Test metrics of" in output
    reports = method / "published" / "best"
    figures = json.loads((reports / "metrics" / "clean.json").read_text())
    assert figures["clips"] == CLIPS[kind] and all(0 <= figures[name] <= 1 for name in SCORES)
    assert not (reports / "metrics" / "untrained.json").exists() and (reports / "model.safetensors").is_file()


def backbone(workspace: Path) -> tuple[str, str | None]:
    """Backbone and weights of the workspace's checkpoint."""
    with safetensors.safe_open(workspace / "models" / "qdformer" / "model.safetensors", "pt") as file:
        model = json.loads(file.metadata()["qdformer"])["model"]
    return model["backbone"], model["backbone_weights"]
