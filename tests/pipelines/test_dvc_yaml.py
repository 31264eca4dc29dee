"""`dvc.yaml` tells the truth: each stage depends on the code that it runs, and on no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers import PROJECT
from tests.helpers.imports import MODULES, run_time_modules

STAGES = {
    name: stage.get("do", stage)
    for name, stage in yaml.safe_load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items()
}
NO_PART_OF_A_RESULT = {
    "pipelines.cli": "reads params.yaml, whose values each stage names under params, and turns errors into exit codes",
    "pipelines.workspace": "where a workspace lies and what its results came from, for the record",
    "qdformer": "lets torchaudio be imported",
    "qdformer.tracking": "the record of a run",
}
"""Modules that stages import and that decide no byte of an out."""


def code_of(stage: str) -> set[str]:
    """The files of the project that the stage's command runs or reads beside its modules, relative to the project."""
    module = STAGES[stage]["cmd"].split()[2]
    found = set()
    for name in run_time_modules(module, left_out=[name for name in NO_PART_OF_A_RESULT if name != "qdformer"]):
        if name == "qdformer":
            continue
        path = MODULES[name]
        source = path.read_text(encoding="utf-8")
        found.add(path)
        found |= {file for file in path.parent.iterdir() if file.suffix in (".csv", ".html") and file.name in source}
    return {path.relative_to(PROJECT).as_posix() for path in found}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_runs(stage):
    code = code_of(stage)
    deps = [dep for dep in STAGES[stage]["deps"] if dep.startswith(("pipelines/", "qdformer/"))]
    missing = [file for file in sorted(code) if not any(Path(file).is_relative_to(dep) for dep in deps)]
    needless = [dep for dep in deps if not any(Path(file).is_relative_to(dep) for file in code)]
    assert not missing, "imported, but not among the stage's deps"
    assert not needless, "among the stage's deps, but not imported"
    assert deps == sorted(deps)


def test_every_stage_has_a_file_of_its_name():
    files = {path.stem for path in (PROJECT / "pipelines" / "stages").glob("*.py")} - {"__init__"}
    assert files == set(STAGES)
    assert all(stage["cmd"].startswith(f"python -m pipelines.stages.{name}") for name, stage in STAGES.items())
