"""One training run: its inputs, and the digest under which it is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qdformer.utils.digests import file_sha256, short_digest, tree_sha256

if TYPE_CHECKING:
    from qdformer.config.train import Train

PACKAGE = Path(__file__).resolve().parents[1]
CODE = (
    "data/augment.py",
    "data/dataset.py",
    "data/labels.py",
    "data/manifest.py",
    "data/readers/avsbench.py",
    "models",
    "training",
    "utils/distributed.py",
    "utils/precision.py",
    "utils/tables.py",
)
"""The code that decides what a training gives."""


@dataclass(frozen=True)
class Job:
    """One training run. Paths are absolute, because workers run in another working directory."""

    recipe: Train
    dataset: Path
    features: Path
    storage: Path
    on_epoch: Callable[[Mapping[str, float]], None] | None = None
    """Called by rank 0 with the metrics of each epoch; it is pickled and sent to the worker's process."""

    @property
    def progress_file(self) -> Path:
        """File to which rank 0 writes the number of finished steps and of all steps."""
        return self.storage / "progress"

    def digest(self) -> str:
        """Digest of settings, data and code, on which the result depends. A run is resumed only under it."""
        trees = [self.dataset, *(PACKAGE / name for name in CODE)]
        return short_digest([self.recipe.model_dump_json(), file_sha256(self.features), *map(tree_sha256, trees)])
