"""`make export`: a folder that predicts the same, and an ONNX graph that runs without PyTorch and this project."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from pipelines.export import export_model
from pipelines.predict import load_segmenter
from qdformer.audio.features.extract import Embedder
from qdformer.audio.vggish import VGGish
from qdformer.config.settings import load_settings
from qdformer.inference import Predictor, Segmenter
from qdformer.utils.errors import InputError
from tests.helpers import PROJECT
from tests.helpers.model import CLASSES, NAMES, make_model
from tests.helpers.video import write_video


def test_only_an_export_is_replaced(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="is not an exported model; choose another OUT"):
        export_model("toy", "", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_name_that_is_neither_a_path_nor_a_model_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    settings = load_settings(PROJECT / "params.yaml")
    with pytest.raises(InputError, match="lab/none: no such folder, and no model of the Hugging Face hub"):
        load_segmenter(settings, tmp_path, "lab/none")
    with pytest.raises(InputError, match=r"MODEL=lab/none.safetensors: no such file"):
        load_segmenter(settings, tmp_path, "lab/none.safetensors")


@pytest.mark.slow
def test_the_graph_runs_without_torch_as_the_documentation_shows(tmp_path, capsys):
    torch.manual_seed(0)
    embedder = Embedder(VGGish().eval(), "repeat", patches_per_batch=None)
    Segmenter(Predictor(make_model().eval(), NAMES, embedder, 64), clip_frames=2).save_pretrained(tmp_path / "model")
    export_model("toy", str(tmp_path / "model"), str(tmp_path / "exported"))
    assert "model.onnx" in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "exported").iterdir()}
    assert files == {"README.md", "config.json", "model.onnx", "model.pt2", "model.safetensors", "vggish.safetensors"}

    blocks = re.findall(r"```python\n(.*?)```", (PROJECT / "docs" / "predict.md").read_text(encoding="utf-8"), re.S)
    (snippet,) = [block for block in blocks if "onnxruntime" in block]
    write_video(tmp_path / "clip.mp4", 2)
    blocked = "import sys\nsys.modules['torch'] = sys.modules['qdformer'] = None\n"
    code = blocked + snippet + "print(semantic.shape, class_probs.shape)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"(2, 64, 64) (2, {CLASSES})\n")
