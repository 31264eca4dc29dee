"""The scores of several runs over the signal-to-noise ratio, on one plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas

from qdformer.evaluation.result import SCORES
from qdformer.reporting import plots
from qdformer.utils.errors import InputError


def compare_robustness(reports: Mapping[str, Path], out: Path) -> None:
    """Draw the robustness curves of runs to `out` (PNG) and write all their scores beside it (CSV).

    `reports` maps the name of each run to the folder that `evaluate_checkpoint` wrote. Raises `InputError` if a folder
    has no `intervals.json`.
    """
    runs, rows = {}, []
    for name, folder in reports.items():
        path = folder / "intervals.json"
        if not path.is_file():
            raise InputError(f"{path}: missing; expected the intervals of the evaluated run {name}")
        runs[name] = json.loads(path.read_text(encoding="utf-8"))
        for condition, intervals in runs[name].items():
            ends = {"": "value", "_low": "low", "_high": "high"}
            scores = {f"{key}{end}": intervals[key][part] for key in SCORES for end, part in ends.items()}
            rows.append({"run": name, "condition": condition} | scores)
    plots.save(plots.robustness_curves(runs), out)
    pandas.DataFrame(rows).to_csv(out.with_suffix(".csv"), index=False)
