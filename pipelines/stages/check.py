"""Stage `check`: data/dataset, data/sounds -> reports/check.json, check.html, and the digests of the checked folders.

The later stages depend on these digests, so that nothing is computed from data with errors.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pipelines.cli import stage_main
from pipelines.findings import save_reports, show_reports
from pipelines.workspace import REPORTS
from qdformer.config.check import Check
from qdformer.config.settings import Settings
from qdformer.data.checks import check_dataset, check_sounds, raise_on_errors
from qdformer.utils.files import write_text


def check(settings: Check, data: Path, reports: Path, sources: Sequence[str] = ()) -> None:
    """Write the reports; then write `data/dataset.sha256` and `data/sounds.sha256`, or raise `DataError` for errors.

    The error names `sources`, from which a published set was imported, because its user corrects the files there.
    """
    dataset = check_dataset(data / "dataset", settings.min_component_area, settings.tolerate)
    sounds = check_sounds(data / "sounds")
    found = [dataset, sounds] if sounds.files else [dataset]  # a published data set has no single sounds
    save_reports(found, reports)
    show_reports(found, reports)
    for report in found:
        raise_on_errors(report, sources)
    for name, digest in json.loads((data / "digests.json").read_text(encoding="utf-8")).items():
        write_text(data / f"{name}.sha256", digest + "\n")


def main(settings: Settings) -> None:
    check(settings.check, Path("data"), REPORTS, settings.download.source)


if __name__ == "__main__":
    stage_main(main)
