"""Stage `mix CONDITION`: data/dataset, data/noise -> data/mixed/CONDITION."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.cli import stage_main
from qdformer.audio.noise.collect import read_noise_table
from qdformer.audio.noise.mixing import write_condition
from qdformer.config.base import SettingsError
from qdformer.config.settings import Settings
from qdformer.data.manifest import read_manifest


def mix(settings: Settings, condition: str, data: Path) -> None:
    """Write `data/mixed/CONDITION`: the clips with noise, and the origin of each noise."""
    if condition not in settings.mix.conditions:
        raise SettingsError(f"condition {condition!r}: expected one of {', '.join(settings.mix.conditions)}")
    manifest = write_condition(
        data / "mixed" / condition,
        read_manifest(data / "dataset"),
        read_noise_table(data / "noise"),
        settings.mix.conditions[condition],
        settings.mix.noisy_splits,
        settings.mix.seed,
    )
    achieved = manifest["snr_achieved"].dropna()
    measured = f", SNR {achieved.min():.3f} to {achieved.max():.3f} dB" if len(achieved) else ""
    print(f"{condition}: {len(manifest)} clips{measured}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("condition", help="a name in mix.conditions, such as snr20")
    arguments = parser.parse_args()
    stage_main(lambda settings: mix(settings, arguments.condition, Path("data")))
