"""Parameters, operations, time and memory of the models that a sweep compares, beside their scores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

from pipelines.console import markdown_table
from qdformer.reporting.plots import METRIC_TITLES
from qdformer.reporting.tradeoff import tradeoff

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pipelines.cells import Sweep
    from pipelines.cost import Cost

COLUMNS = ("row", "parameters", "trained", "GFLOP", "ms", "GB, forward pass", "GB, training step")


def compares_methods(plan: Sweep) -> bool:
    """Whether the rows of a sweep are of different methods."""
    return len({cell.settings.train.model.name for cell in plan.cells}) > 1


def row_costs(plan: Sweep, rows: Collection[str]) -> dict[str, Cost]:
    """The cost of the model of each of the `rows`; each is measured in a process of its own, one after the other."""
    from pipelines.cost import measure  # takes seconds to import

    settings = {cell.row: cell.settings.train for cell in plan.cells if cell.row in rows}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
        return dict(zip(settings, processes.map(measure, settings.values()), strict=True))


def cost_table(costs: Mapping[str, Cost]) -> str:
    """The costs as a table in Markdown."""
    rows = []
    for row, cost in costs.items():
        whole, memory = cost.whole, cost.memory
        cells = (
            f"{whole.parameters:,}",
            f"{whole.trained:,}",
            f"{whole.flops / 1e9:.1f}",
            f"{1000 * whole.seconds:,.0f}",
        )
        rows.append([row, *cells, f"{memory.forward / 1e9:.2f}", f"{memory.training_step / 1e9:.2f}"])
    return markdown_table(COLUMNS, rows)


def cost_plot(costs: Mapping[str, Cost], scores: Mapping[str, Mapping[str, float | None]], metric: str) -> Figure:
    """The scores of the rows (`value`, `low` and `high`) over the operations of their models."""
    points = {row: (cost.whole.flops / 1e9, scores[row]) for row, cost in costs.items()}
    return tradeoff(points, METRIC_TITLES[metric])
