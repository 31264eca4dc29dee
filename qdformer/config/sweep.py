"""Section `sweep`: the rows of the ablation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from qdformer.config.base import Positive, Section


class Sweep(Section):
    """`make sweep`: each row is the training settings with some of the model's switched.

    `conditions`, of those of the stage mix and `clean` among them, are what every row is measured under.
    """

    epochs: Positive
    conditions: Annotated[list[str], Field(min_length=1)]
    rows: dict[str, dict[str, bool]]

    @model_validator(mode="after")
    def _rows_switch_parts(self) -> Sweep:
        parts = ("decompose", "quantize", "recombine", "calibrate", "separate")
        for row, switches in self.rows.items():
            if unknown := sorted(set(switches) - set(parts)):
                raise ValueError(f"row {row!r}: unknown part {', '.join(unknown)}; expected {', '.join(parts)}")
        return self
