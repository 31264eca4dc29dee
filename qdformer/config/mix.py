"""Section `mix`: the signal-to-noise ratios."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from qdformer.config.base import Count, Section, Split


class Mix(Section):
    """Stage `mix`: background noise is added to the clips; each condition has one signal-to-noise ratio (SNR).

    `conditions` maps the name of each condition to its SNR in dB over the clip, or null for no noise. Conditions with
    noise have only the splits in `noisy_splits`; the condition without noise has all splits.
    """

    conditions: dict[Annotated[str, Field(pattern=r"^(clean|snr-?\d+)$")], float | None]
    noisy_splits: list[Split]
    seed: Count

    @model_validator(mode="after")
    def _names_say_the_snr(self) -> Mix:
        if "clean" not in self.conditions:
            raise ValueError("conditions must hold clean: null")
        for name, snr in self.conditions.items():
            expected = None if name == "clean" else float(name.removeprefix("snr"))
            if snr != expected:
                raise ValueError(f"condition {name} must be {'null' if expected is None else expected}, not {snr}")
        return self
