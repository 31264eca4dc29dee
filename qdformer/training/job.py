"""One training run: what it is made from, and the digest by which it is resumed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qdformer.config.train import Train
from qdformer.utils.digests import file_sha256, short_digest, tree_sha256

PACKAGE = Path(__file__).resolve().parents[1]
CODE = (
    "data/augment.py",
    "data/dataset.py",
    "data/labels.py",
    "data/manifest.py",
    "data/readers/avsbench.py",
    "models",
    "training",
    "utils/tables.py",
)
"""The code that decides what a training gives."""


@dataclass(frozen=True)
class Job:
    """One training run. Paths are absolute: a worker's working directory is not ours."""

    recipe: Train
    dataset: Path
    features: Path
    storage: Path
    on_epoch: Callable[[Mapping[str, float]], None] | None = None
    """Rank 0 calls it with the metrics of every finished epoch; it is sent to the worker's process."""

    @property
    def progress_file(self) -> Path:
        """Where rank 0 says how many steps it has done, of how many."""
        return self.storage / "progress"

    def digest(self) -> str:
        """What the result depends on: settings, data and code. A run is resumed only under the same digest."""
        trees = [self.dataset, *(PACKAGE / name for name in CODE)]
        return short_digest([self.recipe.model_dump_json(), file_sha256(self.features), *map(tree_sha256, trees)])
