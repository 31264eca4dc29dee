"""Section `sweep`: the ablation study."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from qdformer.config.base import Positive, Section


class Sweep(Section):
    """`make sweep`: trains and evaluates one model per row; a row sets switches of `train.model`.

    Every row is trained for `epochs` and evaluated in `conditions`, which must be conditions of the stage mix and
    include `clean`.
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
