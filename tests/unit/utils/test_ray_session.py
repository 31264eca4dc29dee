"""The start of a Ray session, without Ray's processes."""

from __future__ import annotations

import pytest

ray = pytest.importorskip("ray")

from qdformer.utils import ray_session  # noqa: E402
from qdformer.utils.errors import InputError  # noqa: E402


def test_a_session_that_does_not_start_in_time_is_tried_again(monkeypatch):
    outcomes = [Exception("The current node timed out during startup."), None]
    monkeypatch.setattr(ray_session.ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def init(address, **_):
        assert address == "local", "a cluster of somebody else on this machine is not joined"
        if (error := outcomes.pop(0)) is not None:
            raise error

    monkeypatch.setattr(ray_session.ray, "init", init)
    with ray_session.ray_session():
        assert not outcomes
    outcomes[:] = [Exception("The current node timed out during startup.")] * 3
    with pytest.raises(InputError, match="Ray: no session started in 3 attempts"), ray_session.ray_session():
        pytest.fail("there is no session")
    outcomes[:] = [ConnectionError("no such address")]
    with pytest.raises(ConnectionError), ray_session.ray_session():
        pytest.fail("there is no session")
