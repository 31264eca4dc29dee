"""The cells of a sweep: one training and its evaluation for each row of a grid and each seed, as stages of DVC.

A workspace holds a sweep in `sweeps/GRID/`: `dvc.yaml`, a pipeline of its own that plain `dvc repro` does not run, and
for each cell the folder `ROW/seed-SEED/` with its `params.yaml`, its model and its reports. A cell's folder is a small
workspace: its stages run in it, with the code of the stages `train` and `evaluate`, and read the workspace's data by
symbolic links. A row that changes `mix` or `features` has data of its own in `ROW/data/`, for all of its seeds.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipelines.workspace import CHECKPOINT, REPORTS, write_params
from qdformer.config.base import SettingsError
from qdformer.config.overrides import parse_overrides
from qdformer.config.presets import merge
from qdformer.config.settings import Settings, parse_settings, read_yaml
from qdformer.utils.files import write_text

SWEEPS = Path("sweeps")
LINKED = ("pipelines", "qdformer", "models/vggish")
"""What a cell needs of the workspace beside the data."""
DATA = ("dataset", "dataset.sha256", "noise", "noise.sha256", "sounds", "mixed", "features")
"""What a row with data of its own takes from the workspace's data, unless it makes that itself."""
MADE = {
    "mix": ("data/mixed",),
    "features": ("data/features",),
    "separate": ("models/separator",),
    "separate_features": ("data/separated",),
}
"""What the stages of a row's own data write."""
SEPARATION = Path("pipelines", "separation.yaml")
"""The stages that only rows with `train.model.separate` need."""
CODE = {
    "train": ["pipelines/stages/sweep_train.py"],
    "evaluate": ["pipelines/stages/sweep_evaluate.py"],
}
"""What the stages of a cell run beside the code of the workspace's stages."""
PARAMS = {"train": ["train"], "evaluate": ["evaluate", "mix.seed", "sweep.conditions"]}
"""The settings that the stages of a cell depend on."""
HEADER = "# Written by `make sweep GRID={grid}` from sweep.grids in params.yaml; edit that instead.\n"


@dataclass(frozen=True)
class Cell:
    """One training of a sweep, with the settings that it runs under."""

    grid: str
    row: str
    position: int
    """Of the row in its grid, from 1."""
    seed: int
    settings: Settings

    @property
    def name(self) -> str:
        return f"{self.row}-seed-{self.seed}"

    @property
    def folder(self) -> Path:
        """The cell's folder, relative to the workspace."""
        return SWEEPS / self.grid / self.row / f"seed-{self.seed}"

    @property
    def title(self) -> str:
        return f"{self.row}, seed {self.seed}"


@dataclass(frozen=True)
class Sweep:
    """A grid of cells in a workspace, in the order of the grid's rows and of the seeds."""

    grid: str
    settings: Settings
    """The workspace's own settings, whose data the cells share."""
    cells: tuple[Cell, ...]
    reference: str
    """The row that the others are compared with: that without overrides, or else the last."""

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(cell.row for cell in self.cells))

    def identity(self) -> list[str]:
        """What the results depend on beside data and code: the settings of every cell, in their order."""
        return [f"{cell.folder} {cell.settings.model_dump_json()}" for cell in self.cells]

    @property
    def pipeline(self) -> Path:
        """The file of the sweep's stages, relative to the workspace."""
        return SWEEPS / self.grid / "dvc.yaml"


def plan_sweep(settings: Settings, grid: str, seeds: int | None = None, overrides: Sequence[str] = ()) -> Sweep:
    """Expand a grid; `overrides` (`KEY=VALUE`) apply to all of its rows.

    Raises:
        SettingsError: there is no such grid, a row has an unknown setting or a wrong value, two rows are the same, or
            there is no seed.
    """
    grids = settings.sweep.grids
    if grid not in grids:
        raise SettingsError(f"GRID={grid}: no such grid in sweep.grids; there are: {', '.join(grids)}")
    seeds = settings.sweep.seeds if seeds is None else seeds
    if seeds < 1:
        raise SettingsError(f"SEEDS={seeds}: expected at least 1")
    base = _apply(settings, overrides, "SET")
    cells: list[Cell] = []
    known: dict[str, str] = {}
    reference = list(grids[grid])[-1]
    for position, (row, changes) in enumerate(grids[grid].items(), start=1):
        of_row = _apply(base, changes, f"sweep.grids.{grid}.{row}")
        content = of_row.model_dump_json()
        if content in known:
            raise SettingsError(f"sweep.grids.{grid}.{row}: has the same settings as the row {known[content]}")
        known[content] = row
        if of_row == base:
            reference = row
        for seed in range(base.train.seed, base.train.seed + seeds):
            seeded = of_row.train.model_copy(update={"seed": seed})
            cells.append(Cell(grid, row, position, seed, of_row.model_copy(update={"train": seeded})))
    return Sweep(grid, settings, tuple(cells), reference)


def _apply(settings: Settings, overrides: Iterable[str], source: str) -> Settings:
    try:
        values = parse_overrides(overrides)
    except ValueError as error:
        raise SettingsError(f"{source}: {error}") from None
    return parse_settings(merge(settings.model_dump(), values), source)


def write_sweep(sweep: Sweep, workspace: Path) -> None:
    """Write the pipeline and the folders of a sweep. Files whose content is the same are not touched."""
    stages: dict[str, Any] = {}
    of_workspace = read_yaml(workspace / "dvc.yaml")["stages"]
    if any(cell.settings.train.model.takes_tracks for cell in sweep.cells):
        of_workspace |= read_yaml(workspace / SEPARATION)["stages"]
    for row in sweep.rows:
        cells = [cell for cell in sweep.cells if cell.row == row]
        own = own_data(sweep.settings, cells[0].settings)
        folder = cells[0].folder.parent
        if own:
            _prepare(workspace, folder, cells[0].settings, sweep)
            for made in _made(own):
                if (workspace / folder / made).is_symlink():  # of an earlier plan
                    (workspace / folder / made).unlink()
            _link(workspace, folder, [f"data/{name}" for name in DATA if f"data/{name}" not in _made(own)])
            stages |= dict(_data_stages(row, own, cells[0].settings, of_workspace))
        for cell in cells:
            _prepare(workspace, cell.folder, cell.settings, sweep)
            data = folder / "data" if own else Path("data")
            _symlink(workspace / cell.folder / "data", workspace / data)
            for stage in ("train", "evaluate"):
                stages[f"{stage}-{cell.name}"] = _cell_stage(cell, stage, own, of_workspace[stage])
    text = HEADER.format(grid=sweep.grid) + yaml.safe_dump({"stages": stages}, sort_keys=False, width=120)
    path = workspace / sweep.pipeline
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def own_data(base: Settings, of_row: Settings) -> list[str]:
    """The stages of data, in their order, that a row needs for itself: those whose settings differ, and separation."""
    stages = ["separate", "separate_features"] if of_row.train.model.takes_tracks else []
    if of_row.mix != base.mix:
        return ["mix", "features", *stages]
    return ["features", *stages] if of_row.features != base.features else stages


def _made(own: Sequence[str]) -> tuple[str, ...]:
    return tuple(path for stage in own for path in MADE[stage])


def _keys(stage: str, settings: Settings) -> list[str]:
    """The endings of the names of a stage: the conditions that it is needed for, each after a hyphen; or an empty one.

    Separation takes long, so only the conditions of the sweep are separated.
    """
    needed = {*settings.sweep.conditions, settings.train.condition}
    if stage == "separate":
        return [""]
    return [f"-{name}" for name in settings.mix.conditions if stage != "separate_features" or name in needed]


def stage_names(cell: Cell) -> list[str]:
    """The targets of `dvc repro` that bring a cell up to date, in their order, relative to the workspace."""
    pipeline = SWEEPS / cell.grid / "dvc.yaml"
    return [f"{pipeline}:{stage}-{cell.name}" for stage in ("train", "evaluate")]


def data_stage_names(sweep: Sweep) -> list[str]:
    """The targets that make the data of those rows that have data of their own, in their order."""
    names = []
    for row, settings in {cell.row: cell.settings for cell in sweep.cells}.items():
        for stage in own_data(sweep.settings, settings):
            names += [f"{sweep.pipeline}:{stage}-{row}{key}" for key in _keys(stage, settings)]
    return names


def _data_stages(
    row: str, own: Sequence[str], settings: Settings, of_workspace: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """The stages of the row's own data: those of the workspace's pipeline, in the row's folder."""
    for stage in own:
        text = yaml.safe_dump(of_workspace[stage].get("do", of_workspace[stage]))
        for key in _keys(stage, settings):
            template = yaml.safe_load(text.replace("${key}", key[1:]))  # a foreach of DVC has ${key} in every place
            template["deps"] = [dep if dep.startswith(_made(own)) else _up(dep, levels=3) for dep in template["deps"]]
            yield f"{stage}-{row}{key}", {"wdir": row} | template


def _cell_stage(cell: Cell, stage: str, own: Sequence[str], template: Mapping[str, Any]) -> dict[str, Any]:
    """A stage of the workspace's pipeline as a stage of the cell: in its folder, and with its own settings.

    A model that takes separated tracks is trained on those instead of the features, and evaluated on both: the controls
    of the decomposition hear the sound as it is.
    """
    model = CHECKPOINT.parent.as_posix()
    of_row = tuple(path for path in _made(own) if path.startswith("data/"))
    deps = []
    for dep in (*template["deps"], *CODE[stage]):
        paths = [dep.replace("${train.condition}", cell.settings.train.condition)]
        if dep.startswith("data/features") and cell.settings.train.model.takes_tracks:
            separated = paths[0].replace("data/features", "data/separated")
            paths = [separated] if stage == "train" else [*paths, separated]
        for path in paths:
            levels = 0 if path == model else 1 if path.startswith(of_row) else 4
            deps.append(_up(path, levels))
    return {
        "wdir": f"{cell.row}/seed-{cell.seed}",
        "cmd": f"python -m pipelines.stages.sweep_{stage}",
        "params": list(PARAMS[stage]),  # a copy: YAML would write an alias for the same list
        "deps": deps,
        "outs": [model if stage == "train" else REPORTS.as_posix()],
    }


def _up(path: str, levels: int) -> str:
    return "../" * levels + path


def _prepare(workspace: Path, folder: Path, settings: Settings, sweep: Sweep) -> None:
    (workspace / folder).mkdir(parents=True, exist_ok=True)
    values = settings.model_dump(mode="json")
    values["sweep"] = {"seeds": 1, "conditions": settings.sweep.conditions, "grids": {}}
    write_params(workspace / folder, values, HEADER.format(grid=sweep.grid))
    _link(workspace, folder, LINKED)


def _link(workspace: Path, folder: Path, names: Iterable[str]) -> None:
    for name in names:
        _symlink(workspace / folder / name, workspace / name)


def _symlink(link: Path, target: Path) -> None:
    """Make `link` point to `target`, by a relative path, so that the project can be moved."""
    wanted = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == wanted:
        return
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)  # what a row made itself under an earlier plan
    link.unlink(missing_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(wanted)
