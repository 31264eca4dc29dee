"""Stage `features CONDITION`: data/mixed/CONDITION, models/vggish -> data/features/CONDITION.h5."""

from __future__ import annotations

import argparse
from pathlib import Path

from tqdm import tqdm

from pipelines.cli import stage_main
from qdformer.audio.features import FeatureInfo, extract, write_features
from qdformer.audio.mixing import read_condition
from qdformer.audio.vggish import load_vggish
from qdformer.digests import file_sha256
from qdformer.settings import Settings


def features(settings: Settings, condition: str, data: Path, weights: Path) -> None:
    """Write `data/features/CONDITION.h5`: an embedding for each frame of each clip of the condition."""
    manifest = read_condition(data / "mixed" / condition)
    clips = tqdm(list(zip(manifest["uid"], manifest["audio"], manifest["frames"], strict=True)), desc=condition)
    short_clips = settings.features.short_clips
    embeddings = extract(clips, load_vggish(weights), short_clips)
    info = FeatureInfo(condition, file_sha256(weights), short_clips)
    write_features(data / "features" / f"{condition}.h5", embeddings, info)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("condition", help="a name in mix.conditions, such as snr20")
    arguments = parser.parse_args()
    weights_file = Path("models/vggish/vggish.safetensors")
    stage_main(lambda settings: features(settings, arguments.condition, Path("data"), weights_file))
