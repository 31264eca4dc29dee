"""The import hook that lets torchaudio, and transformers with it, work beside a torch without CUDA."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from types import ModuleType

import pytest

from qdformer.utils import torchaudio_shim


def run(code: str) -> str:
    # minutes on a busy machine: a build with CUDA is gigabytes to load
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_qdformer_imports_nothing_heavy():
    assert run("import qdformer, sys; print(sorted({'torch', 'torchaudio', 'numpy'} & set(sys.modules)))") == "[]"


def test_torchaudio_and_transformers_work_in_a_fresh_process():
    code = (
        "import qdformer, torch, torchaudio, transformers.audio_utils\n"
        "print(torchaudio.functional.resample(torch.ones(1, 441), 44100, 16000).shape[1])"
    )
    assert run(code) == "160"


def test_installing_twice_changes_nothing():
    before = list(sys.meta_path)
    torchaudio_shim.install()
    assert sys.meta_path == before


def test_a_cuda_torch_keeps_its_error(monkeypatch):
    def fail(loader, module):
        raise OSError("libcudart is missing")

    import torchaudio  # noqa: F401  # with torch, while modules can still be loaded

    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr(SourceFileLoader, "exec_module", fail)
    with pytest.raises(OSError, match="libcudart"):
        torchaudio_shim._TolerantLoader("name", "path").exec_module(ModuleType("name"))
