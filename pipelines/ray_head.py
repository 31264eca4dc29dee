"""One local Ray session for many processes: `python -m pipelines.ray_head` runs it until its standard input closes.

The session is in a process of its own, so that it ends with the process that started it, whatever ends that one, and
so that Ray does not change how that one handles signals.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from pipelines.cli import CommandError
from pipelines.environment import PROJECT, dvc_environment

STOP_SECONDS = 15
START_ATTEMPTS = 3


@dataclass(frozen=True)
class Cluster:
    """The address of a Ray session, and what it has."""

    address: str
    cpus: int
    gpus: int
    auth_mode: str
    """Its `RAY_AUTH_MODE`, which a process needs to join by the address: Ray sets it only where it starts a session."""


@contextlib.contextmanager
def shared_ray_session() -> Iterator[Cluster]:
    """Yield a Ray session for the block: the one that `RAY_ADDRESS` names, or a new local one.

    Raises `CommandError` if there is none after `START_ATTEMPTS`: Ray gives a new session 30 s to start, which is not
    enough on a machine that is busy with other work.
    """
    for _ in range(START_ATTEMPTS):
        process = _start()
        assert process.stdout
        if line := process.stdout.readline():
            break
        code = process.wait()
        print(f"the Ray session did not start (exit code {code})", file=sys.stderr, flush=True)
    else:
        raise CommandError(f"the Ray session did not start in {START_ATTEMPTS} attempts; its last error is above")
    try:
        yield Cluster(**json.loads(line))
    finally:
        assert process.stdin
        process.stdin.close()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.ray_head"],
        cwd=PROJECT,
        env=dvc_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def main() -> None:
    import ray

    from qdformer.utils.ray_session import ray_session

    with ray_session():
        resources = ray.cluster_resources()
        address = ray.get_runtime_context().gcs_address
        cpus, gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
        cluster = Cluster(address, cpus, gpus, os.environ.get("RAY_AUTH_MODE", "disabled"))
        print(json.dumps(asdict(cluster)), flush=True)
        sys.stdin.read()  # returns when the parent closes it or has ended


if __name__ == "__main__":
    main()
