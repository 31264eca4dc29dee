"""Robustness curves of several runs on one plot."""

from __future__ import annotations

import json

import pandas
import pytest

from pipelines.robustness import compare_robustness
from qdformer.evaluation.result import SCORES
from qdformer.utils.errors import InputError


def test_runs_are_compared(tmp_path):
    for name, score in (("quantized", 0.5), ("decomposed", 0.25)):
        (tmp_path / name).mkdir()
        around = {"value": score, "low": score - 0.1, "high": score + 0.1}
        intervals = {condition: dict.fromkeys(SCORES, around) for condition in ("clean", "snr0")}
        (tmp_path / name / "intervals.json").write_text(json.dumps(intervals))
    compare_robustness({name: tmp_path / name for name in ("decomposed", "quantized")}, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
    table = pandas.read_csv(tmp_path / "sweep.csv")
    assert table[["run", "condition"]].values.tolist() == [
        [run, condition] for run in ("decomposed", "quantized") for condition in ("clean", "snr0")
    ]
    assert table["miou_dataset_low"].tolist() == pytest.approx([0.15, 0.15, 0.4, 0.4])
    with pytest.raises(InputError, match="third.*intervals.json: missing; expected .* the evaluated run third"):
        compare_robustness({"third": tmp_path / "third"}, tmp_path / "sweep.png")
