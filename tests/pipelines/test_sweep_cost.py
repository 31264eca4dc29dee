"""The costs of the models in the report of a sweep over methods."""

from __future__ import annotations

import math

import pytest

from pipelines.cells import plan_sweep
from pipelines.cost import CLASSES
from pipelines.settings import preset_settings
from pipelines.sweep_cost import compares_methods, cost_plot, cost_table, row_costs
from qdformer.models import build_model
from qdformer.reporting.tradeoff import tradeoff

SCORE = {"value": 0.3, "low": 0.2, "high": 0.5}


def test_only_a_grid_over_methods_has_costs():
    settings = preset_settings("toy")
    assert [grid for grid in settings.sweep.grids if compares_methods(plan_sweep(settings, grid))] == ["methods"]


def test_the_costs_of_a_row_are_those_of_its_model():
    plan = plan_sweep(preset_settings("toy"), "methods", seeds=1)
    costs = row_costs(plan, ["tpavi"])
    train = next(cell.settings.train for cell in plan.cells if cell.row == "tpavi")
    model = build_model(train.model.model_copy(update={"backbone_weights": None}), CLASSES[train.task])
    count = sum(parameter.numel() for parameter in model.parameters())
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    assert list(costs) == ["tpavi"] and costs["tpavi"].whole.parameters == count
    assert costs["tpavi"].whole.trained == count - backbone  # a frozen backbone
    assert costs["tpavi"].whole.flops > 0 < costs["tpavi"].memory.training_step
    header, _, line = cost_table(costs).splitlines()
    assert header.startswith("| row | parameters |") and line.startswith(
        f"| tpavi | {count:,} | {count - backbone:,} |"
    )
    axes = cost_plot(costs, {"tpavi": SCORE}, "miou_dataset").axes[0]
    assert axes.get_ylabel() == "mIoU, dataset-level"
    x, y = axes.containers[0].lines[0].get_data()
    assert (x[0], y[0]) == pytest.approx((costs["tpavi"].whole.flops / 1e9, 0.3))


def test_models_without_a_score_are_not_drawn():
    points = {
        "a": (1.0, SCORE),
        "b": (2.0, {"value": None}),
        "c": (4.0, {"value": math.nan}),
        "d": (8.0, {"value": 0.1}),
    }
    legend = tradeoff(points, "score").axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "d"]
    with pytest.raises(ValueError, match="9 models for one plot; expected 1 to 8"):
        tradeoff({str(number): (1.0, SCORE) for number in range(9)}, "score")
