"""The library without the pipeline's tools, as `pip install qdformer` leaves it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest

from tests.helpers import PROJECT
from tests.helpers.imports import LIBRARY, imports

METADATA = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

WITHOUT_TOOLS = """
import sys
for tool in ("ray", "mlflow", "dvc", "prefect"):
    sys.modules[tool] = None  # an import of it then raises ModuleNotFoundError
"""
PREDICT = """
import numpy as np
from qdformer.audio.features.extract import Embedder
from qdformer.audio.vggish import VGGish
from qdformer.config.settings import load_settings
from qdformer.data.manifest import Classes
from qdformer.inference import Predictor
from qdformer.metrics import avsbench, davis, semantic
from qdformer.models import QDFormer

settings = load_settings("params.yaml").train.model.model_copy(update={"backbone_weights": None})
classes = Classes(("dog", "bell"), (False, False))
predictor = Predictor(QDFormer(settings, 2).eval(), classes, Embedder(VGGish().eval(), "repeat"), image_size=64)
result = predictor.predict(np.zeros((2, 32, 64, 3), np.uint8), np.zeros(32000, np.float32), 16000)
print(result.semantic_THW.shape, result.classes)
"""
EXTRAS = {"fastapi", "mlflow", "ray", "sqlalchemy", "psutil", "onnxruntime", "yt_dlp"}
"""Imports that come with an extra: those of `tracking` and `inference.service`, and those in functions that only the
pipeline calls.
"""
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Packages whose distribution has another name."""


def names(requirements: list[str]) -> set[str]:
    """The distributions that requirements name."""
    return {re.split(r"[^\w-]", requirement)[0].lower() for requirement in requirements}


def run_python(code: str, *options: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run([python, *options, "-c", code], cwd=PROJECT, capture_output=True, text=True)


def test_models_metrics_and_inference_need_no_tool_of_the_pipeline():
    done = run_python(WITHOUT_TOOLS + PREDICT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(2, 32, 64) ('dog', 'bell')\n"


@pytest.mark.parametrize("tool", ["ray", "mlflow", "dvc", "prefect"])
def test_the_core_does_not_install_the_tools_of_the_pipeline(tool):
    assert tool not in names(METADATA["dependencies"])
    assert tool in names(METADATA["optional-dependencies"]["pipeline"])


def test_the_core_installs_what_the_library_imports():
    imported = {name.split(".")[0] for path in LIBRARY.values() for name in imports(path, typing=False)}
    third_party = imported - set(sys.stdlib_module_names) - {"qdformer"} - EXTRAS
    assert {DISTRIBUTIONS.get(name, name) for name in third_party} <= names(METADATA["dependencies"])


def test_the_blocked_tools_would_be_missed():
    done = run_python(WITHOUT_TOOLS + "import qdformer.tracking")
    assert done.returncode == 1 and "ModuleNotFoundError" in done.stderr
