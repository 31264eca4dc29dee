"""A training on two Ray nodes, of which one dies."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers import PROJECT
from tests.helpers.launch import make_inputs
from tests.helpers.runs import SLOW, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def cluster():
    """The process that keeps two nodes of one CPU each, and the environment in which a command joins them."""
    environment = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(PROJECT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.cluster"],
        cwd=PROJECT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert (address := process.stdout.readline().strip()), "the cluster did not start"
    yield process, {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    process.stdin.close()
    process.wait(120 * SLOW)


def test_a_training_goes_on_when_one_of_two_nodes_dies(cluster, tmp_path):
    """Two workers of one CPU each need both nodes; after the death of one node, one worker trains the rest."""
    process, session = cluster
    run = Run(make_inputs(tmp_path), 6, **session)
    run.wait_for("epoch 2/6", 120)
    process.stdin.write("kill\n")
    process.stdin.flush()
    run.wait_for("restarting from the last checkpoint with 1 worker", 120)
    assert run.end(180) == 0, run.text
    assert "resumed after epoch" in run.text and "epoch 6/6" in run.text and run.model


def test_more_workers_than_the_nodes_have_are_refused(cluster, tmp_path):
    _, session = cluster
    run = Run(make_inputs(tmp_path), 1, workers=3, **session)
    assert run.end(60) == 1
    assert "QDFORMER_WORKERS: 3 workers with 1 CPUs each need 3 CPUs, but the Ray cluster has 2" in run.text
