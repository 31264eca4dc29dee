"""Section `evaluate`: the conditions and controls under which a model is measured."""

from __future__ import annotations

from typing import Literal

from qdformer.config.base import Count, Positive, Section, Split


class Evaluate(Section):
    """Stage `evaluate`: metrics of one checkpoint on `split`, in each condition of the stage mix and for each control.

    Controls replace the sound of each clip, except for `untrained`. `shuffled`: the sound of another clip. `silence`,
    `noise` (only the noise of the stage mix) and `offscreen` (the sound of another clip that shares no sounding class)
    are negatives: no object in the frames sounds. `untrained`: the clip's own sound, with the model as it was before
    training.

    `bootstrap`: number of resamples for confidence intervals. `pictures`: number of clips drawn for the report.
    """

    split: Split
    controls: list[Literal["shuffled", "silence", "noise", "offscreen", "untrained"]]
    batch_size: Positive
    bootstrap: Positive
    pictures: Positive
    seed: Count
