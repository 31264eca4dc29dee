"""The list of the code that decides a training's result, compared with the imports."""

from __future__ import annotations

from pathlib import Path

from qdformer.training.job import CODE, PACKAGE
from tests.helpers.imports import MODULES, run_time_modules

NO_INFLUENCE = {
    "qdformer": "allows torchaudio to be imported",
    "qdformer.audio": "the features are part of the digest themselves",
    "qdformer.config": "the settings are part of the digest themselves",
    "qdformer.utils.constants": "sizes and values that the data and features have",
    "qdformer.utils.digests": "computes the digest",
    "qdformer.utils.errors": "error classes",
    "qdformer.utils.files": "writes files",
    "qdformer.utils.torchaudio_shim": "allows torchaudio to be imported",
    "qdformer.data.layout": "names of files",
}
"""Modules that a worker imports and that change no result of a training."""


def test_the_code_of_a_job_is_what_a_worker_imports():
    modules = run_time_modules("qdformer.training.worker")
    deciding = {
        MODULES[name].relative_to(PACKAGE)
        for name in modules
        if not any(name == other or (other != "qdformer" and name.startswith(f"{other}.")) for other in NO_INFLUENCE)
    }
    assert [file for file in sorted(deciding) if not any(file.is_relative_to(code) for code in CODE)] == []
    assert [code for code in CODE if not any(file.is_relative_to(code) for file in deciding)] == []
    assert all((PACKAGE / Path(code)).exists() for code in CODE)
