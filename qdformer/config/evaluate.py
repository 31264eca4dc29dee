"""Section `evaluate`: conditions, controls and their scores."""

from __future__ import annotations

from typing import Literal

from qdformer.config.base import Count, Positive, Section, Split


class Evaluate(Section):
    """Stage `evaluate`: conditions and controls measured on `split` with one checkpoint.

    Controls see the clips under another sound: `shuffled` gives each clip another's, whatever it is; the negatives
    `silence`, `noise` (the noise of the stage mix alone) and `offscreen` (another clip's, with none of the classes
    that sound in this one) nothing that is in the picture. `untrained` hears the clip's own sound, with the model as
    it was before training. `pictures` clips are drawn and kept for the report.
    """

    split: Split
    controls: list[Literal["shuffled", "silence", "noise", "offscreen", "untrained"]]
    batch_size: Positive
    bootstrap: Positive
    pictures: Positive
    seed: Count
