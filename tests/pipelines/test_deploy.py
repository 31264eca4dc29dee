"""The unit of systemd and the container: they start what the project has, with the variables that it reads."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.helpers import PROJECT

DEPLOY = PROJECT / "deploy"
COMMAND = ["python", "-m", "pipelines.services", "run"]
STOP = 30
"""Seconds that supervisor gives each of the four services."""


def test_the_unit_is_accepted_by_systemd(tmp_path):
    if not (analyze := shutil.which("systemd-analyze")):
        pytest.skip("systemd-analyze is not installed")
    text = (DEPLOY / "qdformer.service").read_text(encoding="utf-8")
    text = text.replace("/opt/qdformer/.venv/bin/python", sys.executable).replace("/opt/qdformer", str(PROJECT))
    unit = tmp_path / "qdformer.service"
    unit.write_text(text, encoding="utf-8")
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert done.returncode == 0 and "qdformer.service" not in done.stderr, done.stderr
    unit.write_text(text.replace("KillMode=mixed", "KillMode=sometimes"), encoding="utf-8")
    wrong = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert "kill mode" in wrong.stderr, "this check finds no errors"


def test_the_unit_runs_the_services_and_waits_for_their_end():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(DEPLOY / "qdformer.service", encoding="utf-8")
    service = unit["Service"]
    assert service["ExecStart"].split()[1:] == COMMAND[1:]
    assert int(service["TimeoutStopSec"]) >= 4 * STOP


def test_the_container_runs_the_services_on_loopback_with_the_variables_that_are_read():
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))["services"]["services"]
    assert service["network_mode"] == "host" and "ports" not in service
    assert (DEPLOY / service["build"]["context"]).resolve() == PROJECT
    assert (PROJECT / service["build"]["dockerfile"]).is_file()
    sources = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "pipelines").rglob("*.py"))
    assert [name for name in service["environment"] if f'"{name}"' not in sources] == []
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    assert yaml.safe_load(re.search(r"^CMD (\[.*\])$", dockerfile, re.M)[1]) == COMMAND
    copied = re.findall(r"^COPY (\S+)", dockerfile, re.M)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").split()
    assert ignored == ["*", *(f"!{path}" for path in copied)]
    assert all((PROJECT / path).is_file() for path in copied)
