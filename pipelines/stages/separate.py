"""Stage `separate`: data/sounds, or the published weights -> models/separator."""

from __future__ import annotations

import json
import time
from pathlib import Path

from pipelines.cli import stage_main
from qdformer.audio.separation.model import save_separator
from qdformer.audio.separation.published import load_published
from qdformer.audio.separation.train import train_separator
from qdformer.audio.vggish.model import WeightsError
from qdformer.audio.vggish.official import resolve_weights
from qdformer.config.separate import Separate
from qdformer.config.settings import Settings
from qdformer.utils.files import write_rows, write_text


def separate(settings: Separate, sounds: Path, out: Path, cache: Path) -> None:
    """Write `out/separator.safetensors`, and `out/record.json` with its origin and quality.

    A separator trained here also has `out/history.csv`, the loss in dB of every step.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    if settings.weights == "published":
        assert settings.published_source and settings.published_sha256, "Separate checks this"
        file = resolve_weights(settings.published_source, settings.published_sha256, cache, "separate.published_source")
        separator = load_published(file)
        if separator.num_sources != settings.sources:
            raise WeightsError(
                f"{file}: has {separator.num_sources} tracks; expected separate.sources: {settings.sources}"
            )
        record = {
            "weights": "published",
            "how": "Conv-TasNet of torchaudio's bundle CONVTASNET_BASE_LIBRI2MIX (speech, 8 kHz), from a file that the "
            "user named",
            "source": settings.published_source,
            "source_sha256": settings.published_sha256,
        }
    else:
        separator, record, losses = train_separator(sounds, settings, cache)
        rows = [{"step": step, "loss_db": loss} for step, loss in enumerate(losses, start=1)]
        write_rows(out / "history.csv", ["step", "loss_db"], rows)
    record["sha256"] = save_separator(separator, out / "separator.safetensors")
    # without times: DVC compares the checksum of this file, which must be the same for the same weights
    write_text(out / "record.json", json.dumps(record, indent=2) + "\n")
    print(f"{record['how']}: {time.monotonic() - started:.0f} s")
    for name, kind in (("seen", "training recordings"), ("unseen", "recordings of the validation split")):
        if (value := record.get(f"si_sdri_{name}_db")) is not None:
            print(f"SI-SDR improvement on new mixtures of {kind}: {value:.1f} dB")


def main(settings: Settings) -> None:
    separate(settings.separate, Path("data/sounds"), Path("models/separator"), Path(".cache/separator"))


if __name__ == "__main__":
    stage_main(main)
