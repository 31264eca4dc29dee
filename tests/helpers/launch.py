"""A small training through Ray, as a command: `python -m tests.helpers.launch FOLDER EPOCHS [SETTINGS]`.

Its data lie in FOLDER, made by `make_inputs`. SETTINGS is a JSON object with keys of `train`. It prints the digest of
the model that it wrote to FOLDER/out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pipelines.cli import command_main
from qdformer.audio.features.store import FeatureInfo, write_features
from qdformer.training.job import Job
from qdformer.training.launch import launch
from qdformer.utils.digests import file_sha256
from tests.helpers.distributed import Sounds, recipe_with, write_clips

CLIPS = 9


def make_inputs(root: Path, count: int = CLIPS, val: int = 0, poisoned: str | None = None) -> Path:
    """Write clips, the last `val` of them for validation, and features below `root`; those of `poisoned` are NaN."""
    write_clips(root / "data", count, val)
    (root / "storage").mkdir()
    sounds = Sounds()
    features = {f"clip{index}": sounds[f"clip{index}"] for index in range(count)}
    if poisoned:
        features[poisoned] = features[poisoned] * float("nan")
    write_features(root / "clean.h5", features.items(), FeatureInfo("clean", "0" * 64, "repeat"))
    return root


def main(root: Path, epochs: int, settings: str = "{}") -> None:
    job = Job(recipe_with(epochs=epochs, **json.loads(settings)), root / "data", root / "clean.h5", root / "storage")
    history = launch(job, root / "out")
    print(f"epochs {len(history)}, model {file_sha256(root / 'out' / 'model.safetensors')}", flush=True)


if __name__ == "__main__":
    command_main(lambda: main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
