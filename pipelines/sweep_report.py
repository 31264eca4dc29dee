"""The results of a sweep as tables in Markdown, CSV and LaTeX, and as a plot over the signal-to-noise ratio."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.cells import Sweep
from pipelines.console import markdown_table
from pipelines.sweep_cost import compares_methods, cost_plot, cost_table, row_costs
from pipelines.sweep_status import COLUMNS, CONDITION, ENDS, FAILED, table_path, with_interval
from pipelines.workspace import REPORTS
from qdformer.evaluation.result import DECOMPOSITION, SCORES
from qdformer.reporting import plots
from qdformer.reporting.resamples import Estimate, Group, read_run
from qdformer.utils.files import write_rows, write_text

if TYPE_CHECKING:
    from pipelines.cost import Cost

PAPER = {
    "table2": {
        "baseline": {"davis_jf": 0.529, "miou_dataset": 0.335},
        "separated": {"davis_jf": 0.562, "miou_dataset": 0.389},
        "decomposed": {"davis_jf": 0.576, "miou_dataset": 0.394},
        "quantized": {"davis_jf": 0.597, "miou_dataset": 0.425},
        "recombined": {"davis_jf": 0.601, "miou_dataset": 0.445},
        "full": {"davis_jf": 0.616, "miou_dataset": 0.466},
        "unquantized": {"davis_jf": 0.576, "miou_dataset": 0.394},
    }
}
"""Table 2 of the paper: J&F on MS3 and mIoU on AVSS, with ResNet-50. Its row 3 stands beside both of its readings."""
SECTIONS = {
    "Scores": ("miou_dataset", "davis_jf", "miou_per_frame", "avsbench_j", "avsbench_f"),
    "Two sources, seen and unseen classes": (
        "miou_dataset_sources_2",
        "davis_jf_sources_2",
        "miou_seen",
        "miou_unseen",
    ),
    "Decomposition": (
        "sounding_exact_2",
        "sounding_map",
        "source_token_share",
        "token_cosine_frame",
        "code_nmi",
    ),
}
"""The tables of the page, all on clean sound, and their metrics (docs/evaluation.md)."""
COST_PICTURE = "-cost.png"
COST_LEGEND = (
    "One clip of five frames with the classes of AVSBench, random weights, float32, on the CPU: GFLOP of matrix "
    "products and convolutions (a multiply-add counts as two), the time of a forward pass, and the peak memory of the "
    "process (`qdformer-cost`)."
)
OVER_SNR = ("miou_dataset", "davis_jf")
METRICS = tuple(metric for metrics in SECTIONS.values() for metric in metrics)
Lines = Mapping[tuple[str, str, str], Mapping[str, object]]
"""The lines of the CSV file by row, condition and metric."""


@dataclass(frozen=True)
class SweepReport:
    """What `write_report` wrote."""

    title: str
    markdown: str
    files: list[Path]
    colors: dict[str, str]
    """Of the rows in the plot, by the tag `row` of their runs."""

    @property
    def recorded_metrics(self) -> list[str]:
        """The names of the metrics on clean sound in MLflow; a run has no scores of groups of clips."""
        return [f"{CONDITION}/{metric}" for metric in METRICS if metric in (*SCORES, *DECOMPOSITION)]


def write_report(plan: Sweep, workspace: Path, failed: Collection[str]) -> SweepReport:
    """Write the results of all cells but the `failed` ones, named, to `reports/sweeps/GRID.*`."""
    groups = {
        row: Group(
            {
                cell.seed: read_run(workspace / cell.folder / REPORTS)
                for cell in plan.cells
                if cell.row == row and cell.name not in failed
            }
        )
        for row in plan.rows
    }
    lines = dict(_lines(plan, groups))
    csv_file = workspace / table_path(plan)
    write_rows(csv_file, COLUMNS, list(lines.values()))
    finished = {row: _intervals(plan, lines, row) for row, group in groups.items() if group.runs}
    costs = row_costs(plan, finished) if compares_methods(plan) else {}
    title, markdown = _title(plan), _markdown(plan, lines, failed, costs)
    write_text(csv_file.with_suffix(".md"), markdown)
    write_text(csv_file.with_suffix(".tex"), _latex(plan, lines))
    files = [csv_file.with_suffix(kind) for kind in (".csv", ".md", ".tex")]
    if finished:
        files.append(plots.save(plots.robustness_curves(finished, OVER_SNR), csv_file.with_suffix(".png")))
    if costs:
        scores = {row: conditions[CONDITION][OVER_SNR[0]] for row, conditions in finished.items()}
        picture = csv_file.with_name(f"{plan.grid}{COST_PICTURE}")
        files.append(plots.save(cost_plot(costs, scores, OVER_SNR[0]), picture))
    tags = [f"{position} {row}" for position, row in enumerate(plan.rows, start=1)]
    colors = dict(zip(tags, itertools.cycle(plots.OKABE_ITO), strict=False))
    return SweepReport(title, markdown, files, colors)


def _lines(plan: Sweep, groups: Mapping[str, Group]) -> Iterator[tuple[tuple[str, str, str], dict[str, object]]]:
    reference = groups[plan.reference]
    of_seeds = len(plan.cells) // len(groups)
    for row, group in groups.items():
        paper = PAPER.get(plan.grid, {}).get(row, {})
        for condition in plan.settings.sweep.conditions:
            for metric in METRICS:
                line: dict[str, object] = {"row": row, "condition": condition, "metric": metric}
                line |= {"seeds": len(group.runs), "of_seeds": of_seeds}
                if group.runs:
                    line |= _numbers("", group.estimate(condition, metric))
                    if row != plan.reference and (change := group.difference(reference, condition, metric)):
                        line |= _numbers("difference", change)
                if condition == CONDITION and metric in paper:
                    line["paper"] = paper[metric]
                yield (row, condition, metric), line


def _numbers(prefix: str, estimate: Estimate) -> dict[str, object]:
    """The columns of an estimate, without those of undefined numbers."""
    names = (prefix or "value", f"{prefix}_low".lstrip("_"), f"{prefix}_high".lstrip("_"))
    numbers = zip(names, (estimate.value, estimate.low, estimate.high), strict=True)
    return {name: number for name, number in numbers if not math.isnan(number)}


def _intervals(plan: Sweep, lines: Lines, row: str) -> dict[str, dict[str, dict[str, float | None]]]:
    """The scores of a row over the conditions, as `plots.robustness_curves` takes them."""
    return {
        condition: {
            metric: {end: lines[row, condition, metric].get(end) for end in ("value", "low", "high")}  # type: ignore[misc]
            for metric in OVER_SNR
        }
        for condition in plan.settings.sweep.conditions
    }


def _title(plan: Sweep) -> str:
    settings = plan.cells[0].settings
    seeds = sorted({cell.seed for cell in plan.cells})
    epochs = sorted({cell.settings.train.epochs for cell in plan.cells})
    return (
        f"Sweep {plan.grid}: data set {settings.download.dataset}, {settings.evaluate.split} split, "
        f"seeds {', '.join(map(str, seeds))}, {'/'.join(map(str, epochs))} epochs"
    )


def _markdown(plan: Sweep, lines: Lines, failed: Collection[str], costs: Mapping[str, Cost]) -> str:
    parts = [
        f"# {_title(plan)}",
        "Mean over seeds [95 % interval of a hierarchical bootstrap over seeds and clips]. A difference is to the row "
        f"`{plan.reference}`, paired by seed and clip. With few seeds the intervals are too narrow. An undefined value "
        "is a dash.",
    ]
    if plan.grid in PAPER:
        parts.append(
            "*paper*: Table 2, ResNet-50 on AVSBench, J&F of MS3 and mIoU of AVSS. Another data set and model: compare "
            "the order of the rows and their differences, not the level."
        )
    if failed:
        parts.append(f"**Failed cells, left out of the means:** {', '.join(sorted(failed))}.")
    for heading, metrics in SECTIONS.items():
        parts.append(f"## {heading}")
        parts.append(markdown_table(*_table(plan, lines, metrics)))
    if costs:
        parts += [f"## Cost\n\n![Scores over cost]({plan.grid}{COST_PICTURE})", COST_LEGEND, cost_table(costs)]
    parts.append(f"## Over the signal-to-noise ratio\n\n![Scores of the rows]({plan.grid}.png)")
    for metric in OVER_SNR:
        conditions = plan.settings.sweep.conditions
        cells = [[row, *(_cell(lines[row, name, metric]) for name in conditions)] for row in plan.rows]
        parts += [f"`{metric}`:", markdown_table(["row", *conditions], cells)]
    return "\n\n".join(parts) + "\n"


def _table(plan: Sweep, lines: Lines, metrics: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of one table on clean sound: every metric, its difference, and the paper's value if any.

    A metric that no row defines, such as `miou_seen` for data without seen classes, has no column.
    """
    columns = ["row", "seeds"]
    rows = []
    defined = [metric for metric in metrics if any("value" in lines[row, CONDITION, metric] for row in plan.rows)]
    metrics = defined or metrics
    printed = [metric for metric in metrics if any("paper" in lines[row, CONDITION, metric] for row in plan.rows)]
    for metric in metrics:
        columns += [f"`{metric}`", "difference", *(["paper"] if metric in printed else [])]
    for row in plan.rows:
        first = lines[row, CONDITION, metrics[0]]
        cells = [row, f"{first['seeds']} of {first['of_seeds']}"]
        for metric in metrics:
            line = lines[row, CONDITION, metric]
            cells += [_cell(line), "" if row == plan.reference else _cell(line, "difference", "+")]
            if metric in printed:
                cells.append(f"{line['paper']:.3f}" if "paper" in line else "–")
        rows.append(cells)
    return columns, rows


def _cell(line: Mapping[str, object], prefix: str = "", sign: str = "") -> str:
    if not line["seeds"]:
        return FAILED
    names = (prefix or "value", *(f"{prefix}{end}".lstrip("_") for end in ENDS[1:]))
    value, low, high = (str(line.get(name, "")) for name in names)
    return with_interval(value, low, high, sign)


def _latex(plan: Sweep, lines: Lines) -> str:
    """The scores of `OVER_SNR` on clean sound, for a paper that loads booktabs."""
    columns, rows = _table(plan, lines, OVER_SNR)
    body = [columns, *rows]
    text = [" & ".join(_escaped(cell) for cell in cells) + r" \\" for cells in body]
    text[0] = f"{text[0]}\n\\midrule"
    head = f"% {_title(plan)}\n\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}\n\\toprule"
    return "\n".join([head, *text, "\\bottomrule\n\\end{tabular}\n"])


def _escaped(text: str) -> str:
    return text.replace("`", "").replace("_", r"\_").replace("–", "--").replace("%", r"\%")
