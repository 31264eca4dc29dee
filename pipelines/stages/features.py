"""Stage `features CONDITION`: data/mixed/CONDITION, models/vggish -> data/features/CONDITION.h5."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pipelines.cli import stage_main
from qdformer.audio.features.extract import Clip, EmbedderConfig, Executor, embed_in_threads, extract_features
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


def features(settings: Settings, condition: str, workspace: Path) -> None:
    """Write `data/features/CONDITION.h5`: an embedding for each frame of each clip of the condition.

    The work is done in this process, or on the Ray cluster at `RAY_ADDRESS`. Finished clips are kept in
    `.cache/features`, because DVC removes the file before a rerun.
    """
    workspace = workspace.resolve()
    manifest = read_condition(workspace / "data" / "mixed" / condition)
    clips = [Clip(row.uid, row.audio, row.frames) for row in manifest.itertuples()]
    summary = extract_features(
        workspace / "data" / "features" / f"{condition}.h5",
        clips,
        feature_recipe(settings.features, workspace),
        condition,
        workspace / ".cache" / "features",
        settings.features.bad_clips,
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
