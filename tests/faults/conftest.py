"""The faults are injected into the small project of the tests of `pipelines`."""

from tests.pipelines.conftest import prefect_api, project, receiver

__all__ = ["prefect_api", "project", "receiver"]
