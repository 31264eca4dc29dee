"""Random mixtures of single sounds with their sources, for training and measuring a separator.

Shapes: B mixtures, V sources, S samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from qdformer.audio.io.level import db_to_amplitude, rms
from qdformer.audio.io.views import random_view
from qdformer.audio.vggish.mixtures import SoundSplit, cut_sound

LEVEL_RANGE_DB = (-5.0, 0.0)  # of a source
FEWER_SOURCES_P = 0.2  # probability that at least one source is silent
NOISE_P = 0.2  # probability that one of the sources is background noise
PART_P = 0.15  # probability that a source sounds only before or after a moment in the middle half of the mixture


@dataclass(frozen=True)
class Mixtures:
    """Mixtures of `sources` sounds of different classes, `samples` long. Each depends on the seed, the number
    of its batch and its place there.

    `varied`: as for training; sounds are random views of their recordings, and sources may be silent, noise, or sound
    in a part of the mixture only. Otherwise all sources sound all the time.
    """

    sounds: SoundSplit
    sources: int
    samples: int
    seed: int
    varied: bool

    def batch(self, number: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixtures [B, S] and their sources [B, V, S]; a silent source is zeros."""
        targets_BVS = torch.zeros(count, self.sources, self.samples)
        for index, targets_VS in enumerate(targets_BVS):
            self._fill(targets_VS.numpy(), np.random.default_rng([self.seed, number, index]))
        return targets_BVS.sum(1), targets_BVS

    def _fill(self, targets_VS: np.ndarray, random: np.random.Generator) -> None:
        classes = [recordings for recordings in self.sounds.sources if recordings]
        count = min(self.sources, len(classes))
        if self.varied and random.random() < FEWER_SOURCES_P:
            count = int(random.integers(1, max(count, 2)))
        pools = [classes[index] for index in random.choice(len(classes), count, replace=False)]
        if self.varied and self.sounds.noises and random.random() < NOISE_P:
            pools[-1] = self.sounds.noises
        for target_S, pool in zip(targets_VS, pools, strict=False):
            part_S = cut_sound(pool[random.integers(len(pool))], self.samples, random)
            if self.varied:
                part_S = random_view(part_S, random)
            target_S[:] = part_S * (db_to_amplitude(random.uniform(*LEVEL_RANGE_DB)) / rms(part_S))
            if self.varied and random.random() < PART_P:
                middle = int(random.uniform(0.25, 0.75) * self.samples)
                target_S[slice(middle) if random.random() < 0.5 else slice(middle, None)] = 0
