"""`dvc.yaml` tells the truth: each stage depends on the code that it runs, and on no other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers import PROJECT
from tests.helpers.imports import MODULES, run_time_modules

STAGES = {
    name: stage.get("do", stage)
    for file in ("dvc.yaml", "pipelines/separation.yaml")
    for name, stage in yaml.safe_load((PROJECT / file).read_text(encoding="utf-8"))["stages"].items()
}
NOT_FOLLOWED = {
    "pipelines.cli": "error messages and exit codes",
    "pipelines.environment": "where the project is, and the environment of commands",
    "pipelines.workspace": "where a workspace lies, and where its results came from",
    "qdformer.config.settings": "joins the sections, each of which a stage names under params",
    "qdformer.tracking": "the record of a run",
    "qdformer.utils.torchaudio_shim": "allows torchaudio to be imported",
}
"""Modules that stages import and that change no byte of any out."""


def code_of(stage: str) -> set[str]:
    """The project's files that decide what the stage writes, relative to the project.

    They are the modules imported at run time, data files that these name, and the settings' sections under `params`.
    """
    modules = run_time_modules(STAGES[stage]["cmd"].split()[2], NOT_FOLLOWED)
    for param in STAGES[stage]["params"]:
        modules |= run_time_modules(f"qdformer.config.{param.split('.')[0]}", NOT_FOLLOWED)
    found = set()
    for path in (MODULES[name] for name in modules - {"qdformer"}):
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
    assert files == {*STAGES, "sweep_train", "sweep_evaluate"}, "the last two are the stages of a sweep's cells"
    assert all(f"{stage['cmd']} ".startswith(f"python -m pipelines.stages.{name} ") for name, stage in STAGES.items())
