"""The deployments of prefect.yaml, as the worker serves them."""

from __future__ import annotations

from datetime import timedelta

import pytest
import yaml

from pipelines.services import worker
from qdformer.config.base import SettingsError


@pytest.fixture
def read(tmp_path, monkeypatch):
    def read_with(schedules: object) -> list:
        path = tmp_path / "prefect.yaml"
        entrypoint = "pipelines/flows/retrain.py:retrain"
        entry = {"name": "night", "entrypoint": entrypoint, "parameters": {"data": "toy"}, "schedules": schedules}
        path.write_text(yaml.safe_dump({"deployments": [entry]}))
        monkeypatch.setattr(worker, "DEPLOYMENTS", path)
        return worker.read_deployments()

    return read_with


def test_the_file_of_the_project_has_the_default_settings_every_night():
    default, toy = worker.read_deployments()
    assert (default.name, default.parameters) == ("default", {"data": ""})
    assert [one.schedule.cron for one in default.schedules] == ["0 3 * * *"]
    assert (toy.name, toy.parameters, toy.schedules) == ("toy", {"data": "toy"}, [])


def test_schedules_are_cron_expressions_or_intervals(read):
    (deployment,) = read([{"cron": "5 4 * * *"}, {"interval": 90}])
    cron, interval = (one.schedule for one in deployment.schedules)
    assert cron.cron == "5 4 * * *" and interval.interval == timedelta(seconds=90)


@pytest.mark.parametrize("schedule", [{"interval": 0}, {"interval": "often"}, {"cron": "99 3 * * *"}, {"rrule": "x"}])
def test_a_schedule_that_can_never_run_names_its_deployment(read, schedule):
    with pytest.raises(SettingsError, match=r"prefect.yaml: deployment night: "):
        read([schedule])
