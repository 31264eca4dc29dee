"""The library without the pipeline's tools, as `pip install qdformer` leaves it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers import PROJECT

WITHOUT_TOOLS = """
import sys
for tool in ("ray", "mlflow", "dvc", "prefect"):
    sys.modules[tool] = None  # an import of it then raises ModuleNotFoundError
"""
PREDICT = """
import torch
import qdformer.inference, qdformer.metrics
from qdformer.config.settings import load_settings
from qdformer.metrics import avsbench, davis, semantic
from qdformer.models import QDFormer

model = QDFormer(load_settings("params.yaml").train.model.model_copy(update={"backbone_weights": None}), 3).eval()
with torch.inference_mode():
    valid_BT = torch.ones(1, 2, dtype=torch.bool)
    prediction = model.predict(torch.zeros(1, 2, 3, 64, 64), torch.zeros(1, 2, 128), valid_BT)
print("predicted", type(prediction).__name__)
"""


def run_python(code: str, *options: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *options, "-c", code], cwd=PROJECT, capture_output=True, text=True)


def test_models_metrics_and_inference_need_no_tool_of_the_pipeline():
    done = run_python(WITHOUT_TOOLS + PREDICT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "predicted Prediction\n"


@pytest.mark.parametrize("tool", ["ray", "mlflow", "dvc", "prefect"])
def test_the_core_does_not_install_the_tools_of_the_pipeline(tool):
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def names(requirements: list[str]) -> set[str]:
        return {requirement.split("==")[0].split("[")[0] for requirement in requirements}

    assert tool not in names(project["dependencies"])
    assert tool in names(project["optional-dependencies"]["pipeline"])


def test_the_blocked_tools_would_be_missed():
    done = run_python(WITHOUT_TOOLS + "import qdformer.tracking")
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr
