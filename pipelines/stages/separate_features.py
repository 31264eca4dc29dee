"""Stage `separate_features CONDITION`: data/mixed/CONDITION, models/separator -> data/separated/CONDITION.h5."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.cli import stage_main
from pipelines.stages.features import extract_condition, feature_recipe
from qdformer.audio.separation.embed import TrackEmbedderConfig
from qdformer.config.settings import Settings
from qdformer.utils.digests import file_sha256

SEPARATOR = Path("models", "separator", "separator.safetensors")


def separate_features(settings: Settings, condition: str, workspace: Path) -> None:
    """Write `data/separated/CONDITION.h5`: embeddings of the separated tracks of each frame of each clip."""
    workspace = workspace.resolve()
    plain, separator = feature_recipe(settings.features, workspace), workspace / SEPARATOR
    recipe = TrackEmbedderConfig(**vars(plain), separator=separator, separator_sha256=file_sha256(separator))
    extract_condition(settings.features, condition, workspace, recipe, "separated")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("condition", help="a name in mix.conditions, such as snr20")
    arguments = parser.parse_args()
    stage_main(lambda settings: separate_features(settings, arguments.condition, Path.cwd()))
