"""The results of a workspace on the terminal: test metrics, seconds per stage, and where the record is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.console import markdown_table, print_table
from pipelines.settings import preset_label
from pipelines.workspace import REPORTS

if TYPE_CHECKING:
    from pipelines.record import Record
    from qdformer.config.settings import Settings


# The metrics of segmentation. The library's own lists of names would import torch, which takes seconds.
TABLE_METRICS = ("miou_", "avsbench_", "davis_", "clips", "fpr", "g_miou")
"""What the names of the metrics in the table on the terminal start with."""


def print_results(name: str, settings: Settings, workspace: Path, record: Record, seconds: Mapping[str, float]) -> str:
    """Print the results of the preset `name`; return them in Markdown.

    `seconds` holds the time of each stage that ran; it is empty if every stage was up to date.
    """
    metrics = read_metrics(workspace / REPORTS, [*settings.mix.conditions, *settings.evaluate.controls])
    columns, rows = metric_rows(metrics)
    timings = [[stage, f"{value:.1f}"] for stage, value in seconds.items()]
    title = results_title(name, settings)
    print_table(title, columns, rows)
    both_right = two_of_two(metrics.get("clean", {}))
    print(both_right)
    if timings:
        print_table("Seconds per stage", ["stage", "seconds"], [*timings, ["all", f"{sum(seconds.values()):.1f}"]])
    else:
        print("Every stage was up to date.")
    print(f"\nMLflow record: {record}\nOpen it with:  make ui")
    print(f"All runs and their scores, while that runs: {record.runs_url}")
    markdown = [f"## {title}", markdown_table(columns, rows), both_right, f"MLflow: {record}"]
    if timings:
        markdown.append(markdown_table(["stage", "seconds"], timings))
    return "\n\n".join(markdown)


def metric_rows(metrics: Mapping[str, Mapping[str, float]]) -> tuple[list[str], list[list[str]]]:
    """The columns and rows of the table of metrics, by condition."""
    keys = dict.fromkeys(key for values in metrics.values() for key in values)
    columns = [key for key in keys if key.startswith(TABLE_METRICS)]
    rows = [[condition, *(_number(values.get(key)) for key in columns)] for condition, values in metrics.items()]
    return ["condition", *columns], rows


def results_title(name: str, settings: Settings) -> str:
    """The preset, the data set, and what is needed to read a metric: split and its rule, task, resizing."""
    train = settings.train
    return (
        f"Test metrics of {preset_label(name)} (data set {settings.download.dataset}, {settings.download.split_rule}; "
        f"{settings.evaluate.split} split; {train.task}; {train.resize} {train.image_size})"
    )


def two_of_two(metrics: Mapping[str, float | None]) -> str:
    """A sentence on the frames with two sounding classes, for the model and beside it for the controls."""
    shares = {
        title: _number(metrics.get(f"{prefix}sounding_exact_2")) or "–"
        for prefix, title in {
            "": "the model",
            "probe_": "a linear layer on the audio",
            "probe_visible_": "the same with the visible classes known",
        }.items()
    }
    named = ", ".join(f"{title} {share}" for title, share in shares.items())
    return f"Frames with two sounding classes, both predicted: {named}"


def read_metrics(reports: Path, order: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metrics in `metrics/*.json` by condition, those in `order` first."""
    found = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in (reports / "metrics").glob("*.json")}
    return {name: found[name] for name in [*order, *sorted(set(found) - set(order))] if name in found}


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else f"{value:.3f}"
