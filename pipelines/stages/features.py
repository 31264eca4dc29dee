"""Stage `features CONDITION`: data/mixed/CONDITION, models/vggish -> data/features/CONDITION.h5."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path

from pipelines.cli import stage_main
from qdformer.audio.features.extract import Clip, EmbedderConfig, Executor, embed_in_threads, extract_features
from qdformer.audio.features.store import FeatureError, FeatureStore
from qdformer.audio.noise.mixing import read_condition
from qdformer.config.features import Features
from qdformer.config.settings import Settings
from qdformer.utils.digests import file_sha256

WEIGHTS = Path("models", "vggish", "vggish.safetensors")


def feature_recipe(settings: Features, workspace: Path) -> EmbedderConfig:
    """How the workspace's features are computed. Paths are absolute, because a Ray worker has another directory."""
    weights = workspace.resolve() / WEIGHTS
    pca = Path(settings.pca).expanduser().resolve() if settings.pca else None
    return EmbedderConfig(
        weights, file_sha256(weights), settings.short_clips, settings.center, pca, settings.pca_sha256 if pca else ""
    )


def model_features(settings: Settings, workspace: Path, condition: str) -> FeatureStore:
    """The features that the model of the settings takes: of the clips' sounds, or of their separated tracks.

    Raises `FeatureError` if they are missing or were computed in another way.
    """
    made = asdict(feature_recipe(settings.features, workspace).info(condition))
    if not settings.train.model.takes_tracks:
        return FeatureStore(workspace / "data" / "features" / f"{condition}.h5", **made)
    path = workspace / "data" / "separated" / f"{condition}.h5"
    if not path.is_file():
        raise FeatureError(
            f"{path}: no such feature file; train.model.separate needs separated tracks, which only a row of a sweep "
            "has, as in: make sweep GRID=table2"
        )
    del made["separator"]
    return FeatureStore(path, **made)


def features(settings: Settings, condition: str, workspace: Path) -> None:
    """Write `data/features/CONDITION.h5`: an embedding for each frame of each clip of the condition."""
    workspace = workspace.resolve()
    extract_condition(settings.features, condition, workspace, feature_recipe(settings.features, workspace), "features")


def extract_condition(settings: Features, condition: str, workspace: Path, recipe: EmbedderConfig, folder: str) -> None:
    """Write `data/FOLDER/CONDITION.h5` of a workspace, an absolute path.

    The work is done in this process, or on the Ray cluster at `RAY_ADDRESS`. Finished clips are kept in
    `.cache/FOLDER`, because DVC removes the file before a rerun.
    """
    manifest = read_condition(workspace / "data" / "mixed" / condition)
    clips = [Clip(row.uid, row.audio, row.frames) for row in manifest.itertuples()]
    summary = extract_features(
        workspace / "data" / folder / f"{condition}.h5",
        clips,
        recipe,
        condition,
        workspace / ".cache" / folder,
        settings.bad_clips,
        _executor(),
    )
    for uid, problem in summary.left_out:
        print(f"left out: clip {uid}: {problem}")
    resumed = f", {summary.resumed} of them from an earlier run" if summary.resumed else ""
    left_out = f", {len(summary.left_out)} left out" if summary.left_out else ""
    print(f"{condition}: {summary.written} clips{resumed}{left_out}")


def _executor() -> Executor:
    if not os.environ.get("RAY_ADDRESS"):
        return embed_in_threads
    from qdformer.audio.features.ray_executor import embed_on_ray  # Ray's import takes seconds

    return embed_on_ray


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("condition", help="a name in mix.conditions, such as snr20")
    arguments = parser.parse_args()
    stage_main(lambda settings: features(settings, arguments.condition, Path.cwd()))
