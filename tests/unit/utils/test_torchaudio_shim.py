"""torchaudio, and transformers with it, can be imported beside a CPU-only torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qdformer.utils import torchaudio_shim


def run(code: str) -> str:
    # A CUDA build of torch takes minutes to load on a busy machine
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def installed(monkeypatch, cuda: str | None, torchaudio: str) -> bool:
    """Whether `install` registers the module beside a torch with this `torch.version.cuda`, and this torchaudio."""
    versions = {"torch": {"cuda": cuda}, "torchaudio": {"__version__": torchaudio}}
    monkeypatch.setattr(torchaudio_shim, "version_of", versions.__getitem__)
    monkeypatch.delitem(sys.modules, torchaudio_shim.EXTENSION, raising=False)
    torchaudio_shim.install()
    return torchaudio_shim.EXTENSION in sys.modules


@pytest.fixture(autouse=True)
def restored_modules(monkeypatch):
    """Restore the registered module after each test."""
    if torchaudio_shim.EXTENSION in sys.modules:
        monkeypatch.setitem(sys.modules, torchaudio_shim.EXTENSION, sys.modules[torchaudio_shim.EXTENSION])


def test_import_qdformer_imports_nothing_heavy():
    assert run("import qdformer, sys; print(sorted({'torch', 'torchaudio', 'numpy'} & set(sys.modules)))") == "[]"


def test_torchaudio_and_transformers_work_in_a_fresh_process():
    code = (
        "import qdformer, torch, torchaudio, transformers.audio_utils\n"
        "print(torchaudio.functional.resample(torch.ones(1, 441), 44100, 16000).shape[1])"
    )
    assert run(code) == "160"


def test_a_function_that_needs_the_extension_says_so():
    code = (
        "import qdformer, torch, torchaudio\n"
        "try: torchaudio.functional.forced_align(torch.zeros(1, 2, 2), torch.zeros(1, 1))\n"
        "except RuntimeError as error: print(error)"
    )
    assert "forced_align needs torchaudio's compiled extension" in run(code)


def test_installing_twice_changes_nothing(monkeypatch):
    assert installed(monkeypatch, None, "2.11.0+cu130")
    before = sys.modules[torchaudio_shim.EXTENSION]
    torchaudio_shim.install()
    assert sys.modules[torchaudio_shim.EXTENSION] is before


@pytest.mark.parametrize(("cuda", "torchaudio"), [("13.0", "2.11.0+cu130"), (None, "2.11.0+cpu"), (None, "2.11.0")])
def test_a_cuda_torch_and_a_cpu_torchaudio_are_left_alone(monkeypatch, cuda, torchaudio):
    assert not installed(monkeypatch, cuda, torchaudio)


def test_without_torch_nothing_is_registered(monkeypatch):
    monkeypatch.setattr(torchaudio_shim, "version_of", lambda package: {})
    monkeypatch.delitem(sys.modules, torchaudio_shim.EXTENSION, raising=False)
    torchaudio_shim.install()
    assert torchaudio_shim.EXTENSION not in sys.modules


def test_versions_are_read_without_an_import():
    import torch

    found = torchaudio_shim.version_of("torch")
    assert (found["__version__"], found["cuda"]) == (str(torch.__version__), torch.version.cuda)
    assert torchaudio_shim.version_of("no_such_package") == {}
