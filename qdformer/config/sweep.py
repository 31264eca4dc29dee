"""Section `sweep`: the ablation studies."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from qdformer.config.base import Positive, Section
from qdformer.config.overrides import parse_overrides

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
"""Names of grids and rows are parts of the names of folders and of DVC stages."""


class Sweep(Section):
    """`make sweep`: one model is trained and evaluated for each row of a grid and each seed.

    A row of `grids` lists what differs from the settings of the other sections, as `KEY=VALUE`
    (`qdformer.config.overrides`). `seeds`: number of trainings of each row; they have the seeds `train.seed`,
    `train.seed` + 1, ... Every model is evaluated in `conditions`, which must be conditions of the stage mix and
    include `clean`.
    """

    seeds: Positive
    conditions: Annotated[list[str], Field(min_length=1)]
    grids: dict[Name, Annotated[dict[Name, list[str]], Field(min_length=1)]]

    @model_validator(mode="after")
    def _rows_are_overrides(self) -> Sweep:
        for grid, rows in self.grids.items():
            for row, overrides in rows.items():
                try:
                    values = parse_overrides(overrides)
                except ValueError as error:
                    raise ValueError(f"grids.{grid}.{row}: {error}") from None
                if "seed" in values.get("train", {}):
                    raise ValueError(f"grids.{grid}.{row}: train.seed is set by the sweep; seeds is their number")
        return self
