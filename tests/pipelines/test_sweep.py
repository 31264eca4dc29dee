"""Sweeps on a pipeline of trivial stages: which cells run, what fails, what is compared and recorded."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
import yaml
from mlflow import MlflowClient

from pipelines.cells import SEPARATION, data_stage_names, plan_sweep, stage_names, write_sweep
from pipelines.settings import preset_files, preset_settings
from pipelines.workspace import locked_workspace
from qdformer.config.base import SettingsError
from qdformer.models import METHODS
from tests.helpers.imports import run_time_modules
from tests.helpers.processes import left_behind

SWEEP = ("-m", "pipelines.flows", "sweep")
ROWS = ("baseline", "decomposed", "full")


def trained(project) -> list[str]:
    """The cells that were trained to their end, each as often as it was."""
    path = project.root / "trained"
    return sorted(path.read_text().split()) if path.exists() else []


def keep_rows(project, grid: str, rows) -> None:
    """Leave only some rows of a grid in the project's settings."""
    path = project.root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["sweep"]["grids"] = {grid: {row: values["sweep"]["grids"][grid][row] for row in rows}}
    path.write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_sweep_runs_what_is_stale_and_compares_its_rows(project, prefect_api):
    def sweep(*arguments: str):
        return project.python(*SWEEP, "--seeds", "2", *arguments, PREFECT_API_URL=prefect_api)

    keep_rows(project, "table2", ROWS)
    cells = sorted(f"{row}-{seed}" for row in ROWS for seed in (0, 1))
    (project.root / "fail-row").touch()
    first = sweep()
    assert first.returncode == 1
    assert trained(project) == [cell for cell in cells if not cell.startswith("full")]
    assert "full, seed 1: failed: error: told to fail" in first.stdout
    assert re.search(r"full +0 of 2 +failed", first.stdout)
    assert first.stderr.count("\n") == 1 and "error: 2 of 6 cells failed (full-seed-0, full-seed-1); " in first.stderr
    page = (project.root / "reports/sweeps/table2.md").read_text()
    assert "**Failed cells, left out of the means:** full-seed-0, full-seed-1." in page

    (project.root / "fail-row").unlink()
    second = sweep()
    assert second.returncode == 0, second.stderr
    assert "6 cells, 4 of them finished before" in second.stdout and second.stdout.count("a Ray session") == 1
    assert "2 cells to run, 2 at once (QDFORMER_SWEEP_JOBS), each with 2 of 4 CPU cores" in second.stdout
    assert trained(project) == cells
    assert re.search(r"baseline +2 of 2 +0\.110 \[0\.0\d+, 0\.1\d+\] +-0\.400 \[-0\.400, -0\.400\]", second.stdout)
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("qdformer-stamps").experiment_id])
    parents = [run for run in runs if run.info.run_name == "sweep table2 of stamps"]
    (parent,) = parents
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    finished = [run for run in children if run.info.status == "FINISHED"]
    assert {run.info.run_name for run in finished} == {f"stamps table2 {row} seed {s}" for row in ROWS for s in (0, 1)}
    assert {(run.data.tags["row"], run.data.tags["seed"]) for run in finished} == {
        (f"{number} {row}", seed) for number, row in enumerate(ROWS, start=1) for seed in "01"
    }
    colors = {run.data.tags["row"]: run.data.tags["mlflow.runColor"] for run in finished}
    assert len(set(colors.values())) == len(ROWS)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert files == {f"table2.{kind}" for kind in ("csv", "md", "tex", "png")}

    started = time.monotonic()
    third = project.python("-X", "importtime", *SWEEP, "--seeds", "2", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert time.monotonic() - started < 60
    imported = {line.rpartition("|")[2].strip() for line in third.stderr.splitlines()}
    assert "pydantic" in imported and not imported & {"prefect", "mlflow", "ray", "torch", "pandas"}
    assert "6 cells, all of them finished before" in third.stdout
    table = [line for line in second.stdout.splitlines() if line.startswith(ROWS)]
    assert len(table) == 3 and set(table) <= set(third.stdout.splitlines())
    assert f"run {parent.info.run_id}" in third.stdout

    project.edit(
        "params.yaml", "quantized: [model.recombine=false, ", "quantized: [max_grad_norm=0.2, model.recombine=false, "
    )
    assert sweep().returncode == 0
    assert trained(project) == sorted([*cells, "quantized-0", "quantized-1"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_leaves_no_process_and_goes_on(project, prefect_api, kind):
    environment = {"PREFECT_API_URL": prefect_api, "QDFORMER_SWEEP_JOBS": "2"}
    keep_rows(project, "resolution", ["px96", "px128"])
    assert project.python(*SWEEP, "--grid", "resolution", **environment).returncode == 0
    finished = trained(project)
    project.edit("params.yaml", "image_size=96", "image_size=64")
    project.edit("params.yaml", "      px128:", "      px192:\n      - image_size=192\n      px128:")
    (project.root / "slow-cell").touch()
    (project.root / "started").unlink()
    process = project.start(*SWEEP, "--grid", "resolution", **environment)
    deadline = time.monotonic() + 200
    while len((project.root / "started").read_text().split() if (project.root / "started").exists() else []) < 2:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if kind == signal.SIGINT:
        os.killpg(process.pid, kind)
    else:
        process.send_signal(kind)
    stopped = time.monotonic()
    output, _ = process.communicate(timeout=60)
    if kind == signal.SIGINT:
        assert process.returncode == 130, output
        assert output.endswith("interrupted: run the same command again to continue\n")
    while left_behind(project.root):
        assert time.monotonic() - stopped < 30, left_behind(project.root)
        time.sleep(0.5)

    (project.root / "slow-cell").unlink()
    again = project.python(*SWEEP, "--grid", "resolution", **environment)
    assert again.returncode == 0, again.stderr
    assert "3 cells, 1 of them finished before" in again.stdout
    assert trained(project) == sorted([*finished, "px96-0", "px192-0"])


def test_every_row_of_every_grid_is_valid():
    for name in ("", *preset_files().presets):
        settings = preset_settings(name)
        for grid in settings.sweep.grids:
            if grid == "noise" and set(settings.mix.conditions) == {"clean"}:
                with pytest.raises(SettingsError, match=r"sweep\.grids\.noise\.snr10: .*one of mix\.conditions"):
                    plan_sweep(settings, grid)
                continue
            if settings.train.model.name != "qdformer" and grid in ("table2", "codebook", "tokens", "methods"):
                with pytest.raises(SettingsError, match=rf"sweep\.grids\.{grid}\.\w+: train\.model\.\w+: "):
                    plan_sweep(settings, grid)
                continue
            plan = plan_sweep(settings, grid, seeds=2)
            assert len(plan.cells) == 2 * len(settings.sweep.grids[grid])
            assert {cell.seed for cell in plan.cells} == {settings.train.seed, settings.train.seed + 1}


def test_the_rows_of_the_grid_of_methods_are_the_presets_of_the_methods():
    plan = plan_sweep(preset_settings(), "methods", seeds=1)
    assert plan.rows == ["qdformer", "tpavi", "avsegformer", "catr", "bigen", "lvs", "mssl"] and set(plan.rows) == set(
        METHODS
    )
    assert plan.reference == "qdformer"
    for cell in plan.cells:
        assert cell.settings.train == preset_settings("" if cell.row == "qdformer" else cell.row).train


def test_rows_are_compared_with_the_row_that_changes_nothing():
    settings = preset_settings()
    assert plan_sweep(settings, "table2").reference == "full"
    assert plan_sweep(settings, "codebook").reference == "k128"
    assert plan_sweep(settings, "frames").reference == "t5"
    changed = plan_sweep(settings, "table2", overrides=["epochs=3", "features.center=true"])
    assert changed.reference == "full" and {cell.settings.train.epochs for cell in changed.cells} == {3}
    baseline = changed.cells[0].settings.train.model
    assert not (baseline.decompose or baseline.quantize or baseline.recombine or baseline.calibrate)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            {},
            ("--grid", "table3"),
            "GRID=table3: no such grid in sweep.grids; there are: table2, methods, codebook,",
        ),
        ({}, ("--seeds", "0"), "SEEDS=0: expected at least 1"),
        ({}, ("--seeds", "two"), "SEEDS=two: expected a whole number"),
        ({}, ("--epochs", "0"), "SET: train.epochs: Input should be greater than 0, not 0"),
        ({}, ("--set", "model.codes=3"), "SET: train.model.codes: unknown key; it is called codebook_size now"),
        (
            {"a": ["model.decomposed=true"]},
            (),
            "sweep.grids.table2.a: train.model.decomposed: unknown key; known here:",
        ),
        ({"a": ["epochs=many"]}, (), "sweep.grids.table2.a: train.epochs: Input should be a valid integer, not 'many'"),
        ({"a": ["epochs=4"], "b": ["train.epochs=4"]}, (), "table2.b: has the same settings as the row a"),
        ({"a": ["mix.conditions={clean: null}"]}, (), "table2.a: settings: sweep.conditions must hold clean, and only"),
        ({"a": ["condition=snr0"]}, (), "table2.a: settings: train.condition: snr0 needs the split train"),
        ({"a": ["epochs"]}, (), "grids.table2.a: epochs: expected KEY=VALUE, such as model.codebook_size=64"),
        ({"a": ["seed=3"]}, (), "grids.table2.a: train.seed is set by the sweep; seeds is their number"),
        ({"a": ["epochs=3", "train.epochs=4"]}, (), "grids.table2.a: train.epochs=4: train.epochs is set twice"),
        ({"A b": []}, (), "sweep.grids.table2.A b"),
    ],
)
def test_bad_input_is_refused_before_anything_starts(project, change, arguments, message):
    if change:
        path = project.root / "params.yaml"
        values = yaml.safe_load(path.read_text())
        values["sweep"]["grids"]["table2"] = change
        path.write_text(yaml.safe_dump(values, sort_keys=False))
    done = project.python(*SWEEP, *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not any((project.root / name).exists() for name in ("sweeps", "mlflow.db", "workspaces", ".prefect"))


def test_a_number_of_jobs_that_is_none_is_refused(project):
    done = project.python(*SWEEP, QDFORMER_SWEEP_JOBS="many")
    assert done.returncode == 1 and "QDFORMER_SWEEP_JOBS=many: expected the number of cells at once" in done.stderr
    assert not (project.root / "sweeps").exists()


def test_the_stages_of_cells_depend_on_the_code_that_they_run():
    from pipelines.cells import CODE
    from tests.helpers import PROJECT
    from tests.helpers.imports import MODULES
    from tests.pipelines.test_dvc_yaml import NOT_FOLLOWED, STAGES

    for stage in ("train", "evaluate"):
        modules = run_time_modules(f"pipelines.stages.sweep_{stage}", [*NOT_FOLLOWED, "pipelines.cell_record"])
        code = {MODULES[name].relative_to(PROJECT) for name in modules - {"qdformer"}}
        deps = [*STAGES[stage]["deps"], *CODE[stage]]
        missing = [str(file) for file in sorted(code) if not any(file.is_relative_to(dep) for dep in deps)]
        assert not missing, "imported, but not among the stage's deps"


def test_a_row_that_changes_mix_or_features_has_data_of_its_own(project, tmp_path):
    settings = preset_settings()
    plan = plan_sweep(settings, "noise")
    workspace = project.root
    (workspace / "dvc.yaml").write_text((preset_files().root / "dvc.yaml").read_text())
    write_sweep(plan, workspace)
    stages = yaml.safe_load((workspace / plan.pipeline).read_text())["stages"]
    own, shared = stages["train-snr10-seed-0"], stages["train-without-seed-0"]
    assert "../data/features/snr10.h5" in own["deps"] and "../../../../data/features/clean.h5" in shared["deps"]
    assert "../../../../data/dataset.sha256" in own["deps"] and own["wdir"] == "snr10/seed-0"
    assert "../data/features" in stages["evaluate-snr10-seed-0"]["deps"]
    mix, features = stages["mix-snr10-snr-5"], stages["features-snr10-snr-5"]
    assert mix["cmd"] == "python -m pipelines.stages.mix snr-5" and mix["outs"] == ["data/mixed/snr-5"]
    assert mix["params"] == ["mix.conditions.snr-5", "mix.noisy_splits", "mix.seed"] and mix["wdir"] == "snr10"
    assert "../../../data/noise.sha256" in mix["deps"] and "data/mixed/snr-5" in features["deps"]
    assert "../../../models/vggish" in features["deps"] and features["outs"] == ["data/features/snr-5.h5"]
    assert len(data_stage_names(plan)) == 2 * 2 * len(settings.mix.conditions)
    assert not any(name.startswith("mix-without") for name in stages)
    row = workspace / "sweeps/noise/snr10"
    assert os.readlink(row / "data/dataset") == "../../../../data/dataset" and not (row / "data/mixed").is_symlink()
    assert yaml.safe_load((row / "params.yaml").read_text())["mix"]["noisy_splits"] == ["train", "val", "test"]
    assert os.readlink(row / "seed-0/data") == "../data"
    assert stage_names(plan.cells[0])[1] == "sweeps/noise/dvc.yaml:evaluate-without-seed-0"

    times = {path: path.stat().st_mtime_ns for path in (workspace / "sweeps").rglob("*.yaml")}
    write_sweep(plan, workspace)
    assert {path: path.stat().st_mtime_ns for path in (workspace / "sweeps").rglob("*.yaml")} == times


def test_plain_dvc_repro_runs_no_cell(project):
    for name in ("toy", ""):
        with locked_workspace(name, project.root) as (settings, workspace, _):
            write_sweep(plan_sweep(settings, "resolution"), workspace)
        assert "px96" not in project.dvc_repro(workspace)
    assert trained(project) == []


def test_a_row_with_separated_tracks_has_their_features_beside_the_shared_ones(project):
    settings = preset_settings()
    plan = plan_sweep(settings, "table2", overrides=["separate.steps=5"])
    workspace = project.root
    for name in ("dvc.yaml", SEPARATION):
        (workspace / name).write_text((preset_files().root / name).read_text())
    write_sweep(plan, workspace)
    stages = yaml.safe_load((workspace / plan.pipeline).read_text())["stages"]
    assert plan.rows[:2] == ["baseline", "separated"]
    separate, features = stages["separate-separated"], stages["separate_features-separated-snr0"]
    assert separate["wdir"] == "separated" and separate["outs"] == ["models/separator"]
    assert (
        separate["cmd"] == "python -m pipelines.stages.separate" and "../../../data/sounds.sha256" in separate["deps"]
    )
    assert features["cmd"].endswith("separate_features snr0") and features["outs"] == ["data/separated/snr0.h5"]
    assert {"models/separator", "../../../models/vggish", "../../../data/mixed/snr0"} <= {*features["deps"]}
    train, evaluate = stages["train-separated-seed-0"]["deps"], stages["evaluate-separated-seed-0"]["deps"]
    assert "../data/separated/clean.h5" in train and not any("data/features" in dep for dep in train)
    assert {"../data/separated", "../../../../data/features", "models/qdformer"} <= {*evaluate}
    assert not any("separate" in dep for dep in stages["train-full-seed-0"]["deps"])
    assert data_stage_names(plan)[0] == "sweeps/table2/dvc.yaml:separate-separated"
    assert len(data_stage_names(plan)) == 1 + len(settings.sweep.conditions)
    row = workspace / "sweeps/table2/separated"
    assert os.readlink(row / "data/features") == "../../../../data/features"
    assert os.readlink(row / "seed-0/data") == "../data" and not (row / "data/separated").exists()
    assert yaml.safe_load((row / "params.yaml").read_text())["separate"]["steps"] == 5

    fewer = plan_sweep(
        settings.model_copy(update={"sweep": settings.sweep.model_copy(update={"conditions": ["clean"]})}), "table2"
    )
    assert len(data_stage_names(fewer)) == 2
    both = plan_sweep(settings, "table2", overrides=["features.center=true"])
    write_sweep(both, workspace)
    stages = yaml.safe_load((workspace / plan.pipeline).read_text())["stages"]
    assert "../data/features" in stages["evaluate-separated-seed-0"]["deps"]
    assert not (row / "data/features").is_symlink()
    (row / "data/features").mkdir()
    write_sweep(plan, workspace)
    assert os.readlink(row / "data/features") == "../../../../data/features"
