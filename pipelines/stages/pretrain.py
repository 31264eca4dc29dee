"""Stage `pretrain`: data/sounds, or the official weights -> models/vggish."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipelines.cli import stage_main
from qdformer.audio.vggish.model import load_vggish, save_vggish
from qdformer.audio.vggish.official import resolve_weights
from qdformer.audio.vggish.pretrain import pretrain_vggish
from qdformer.config.pretrain import Pretrain
from qdformer.config.settings import Settings
from qdformer.utils.files import write_text


def pretrain(settings: Pretrain, sounds: Path, out: Path, cache: Path) -> None:
    """Write `out/vggish.safetensors`, and `out/record.json` with the origin of these weights."""
    started = time.monotonic()
    if settings.weights == "official":
        assert settings.official_source and settings.official_sha256, "Pretrain checks this"
        source = resolve_weights(settings.official_source, settings.official_sha256, cache)
        vggish = load_vggish(source, settings.official_sha256)
        record = {
            "weights": "official",
            "how": "VGGish as published, taken from a file that the user named",
            "source": settings.official_source,
            "source_sha256": settings.official_sha256,
        }
    else:
        vggish, record = pretrain_vggish(sounds, settings, cache)
    record["sha256"] = save_vggish(vggish, out / "vggish.safetensors")
    # without times: DVC compares the checksum of this file, which must be the same for the same weights
    write_text(out / "record.json", json.dumps(record, indent=2) + "\n")
    print(f"{record['how']}: {time.monotonic() - started:.0f} s")


def main(settings: Settings) -> None:
    pretrain(settings.pretrain, Path("data/sounds"), Path("models/vggish"), Path(".cache/weights"))


if __name__ == "__main__":
    stage_main(main)
