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

    on_start: Callable[[Mapping[str, str]], None] | None = None
    """Called by the launching process with the number of workers and the size of the global batch."""

    @property
    def inputs_file(self) -> Path:
        """File with the digests of the inputs of the run whose checkpoints are kept."""
        return self.storage / "inputs.json"

    @property
    def messages_file(self) -> Path:
        """File to which rank 0 appends lines for the user."""
        return self.storage / "messages"

    @property
    def progress_file(self) -> Path:
        """File to which rank 0 writes the number of finished steps and of all steps."""
        return self.storage / "progress"

    def inputs(self) -> dict[str, str]:
        """What the result depends on: settings, and digests of data and code, by their names for the user."""
        return {
            "the settings of train": self.recipe.model_dump_json(),
            "the audio features": file_sha256(self.features),
            "the data set": tree_sha256(self.dataset),
            **{f"qdformer/{name}": tree_sha256(PACKAGE / name) for name in CODE},
        }

    def digest(self) -> str:
        """Digest of all inputs. A run is resumed only under it."""
        return short_digest(self.inputs().values())
