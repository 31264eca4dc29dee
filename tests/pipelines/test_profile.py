"""`make profile`: the trace of some training steps."""

from __future__ import annotations

import json

import pytest

from pipelines import profile
from pipelines.profile import ROWS, STEPS
from tests.helpers.distributed import recipe_with


@pytest.mark.slow
def test_the_trace_holds_the_steps_and_the_table_the_longest_operations(tmp_path, capsys):
    path = tmp_path / "new" / "trace.json"
    operations, seconds = profile.trace(recipe_with({"quantize_after": 0.0}, batch_size=2), path)
    assert 0 < seconds < 60
    times = [profile.own_time(operation) for operation in operations]
    assert times == sorted(times, reverse=True) and times[ROWS] > 0
    events = [event["name"] for event in json.loads(path.read_text())["traceEvents"]]
    assert events.count("Optimizer.step#AdamW.step") == STEPS
    profile.show(operations, "Training steps")
    printed = capsys.readouterr().out
    assert printed.count("│ ") == 4 * ROWS and operations[0].key in printed and operations[ROWS].key not in printed
