"""The accumulators of the decomposition: of the model, and of other class scores to compare it with.

Shapes: T frames, F labeled frames of one clip, C object classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from qdformer.evaluation.scores import resample
from qdformer.metrics import SoundingScores, TokenScores

if TYPE_CHECKING:
    from qdformer.evaluation.tokens import BatchTokens

ClassScores = Mapping[str, np.ndarray]
"""The uid of a clip -> a score for every frame and class, float [T, C]."""


class DecompositionScores:
    """The metrics of `qdformer.metrics.decomposition`, and the same of `class_scores`, the scores of controls by name.

    A control that lacks a clip is not measured on it. Its metrics have its name as prefix: `probe_sounding_map`.
    """

    def __init__(self, classes: int, class_scores: Mapping[str, ClassScores]) -> None:
        self.classes, self.class_scores = classes, class_scores
        self.tokens = TokenScores()
        self.sounding = {prefix: SoundingScores(classes) for prefix in ("", *(f"{name}_" for name in class_scores))}

    def update(
        self,
        uid: str,
        class_probs_TC: np.ndarray,
        tokens: BatchTokens,
        item: int,
        frames_F: np.ndarray,
        present_FC: np.ndarray,
        index: int,
    ) -> None:
        """Add the frames `frames_F` of a clip, which have the sources `present_FC`.

        `tokens` are those of its batch, of which it is number `item`; `index` is its position in the test set.
        """
        self.tokens.update(present_FC, **tokens.of_clip(item, frames_F), index=index)
        self.sounding[""].update(class_probs_TC[frames_F], present_FC, index=index)
        none_FC = np.empty((0, self.classes))
        for name, scores in self.class_scores.items():
            pair = (scores[uid][frames_F], present_FC) if uid in scores else (none_FC, none_FC > 0)
            self.sounding[f"{name}_"].update(*pair, index=index)

    def sync(self) -> None:
        """Collect the clips of all processes of the default group of `torch.distributed`."""
        for scores in (self.tokens, *self.sounding.values()):
            scores.sync()

    def resample(self, bootstrap: int, seed: int) -> dict[str, np.ndarray]:
        """As `Scores.resample`; `code_nmi` is NaN for the resamples.

        Clips that are drawn twice raise the mutual information, so that its interval would lie above the value itself.
        """
        resamples = resample(self._compute, len(self.tokens), bootstrap, seed)
        if "code_nmi" in resamples:
            resamples["code_nmi"][1:] = np.nan
        return resamples

    def _compute(self, indices_RN: np.ndarray) -> dict[str, np.ndarray]:
        own, *others = (
            {prefix + key: values_R for key, values_R in scores.compute(indices_RN).items()}
            for prefix, scores in self.sounding.items()
        )
        metrics = own | self.tokens.compute(indices_RN)
        for other in others:
            metrics |= other
        return metrics
