import os
import subprocess
import sys

import pytest

from pipelines.ray_head import shared_ray_session

JOIN = """
import ray
from qdformer.utils.ray_session import ray_session
with ray_session():
    print(int(ray.cluster_resources()["CPU"]))
"""


@pytest.mark.slow
def test_another_process_joins_the_session():
    with shared_ray_session() as cluster:
        session = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": cluster.auth_mode}
        done = subprocess.run([sys.executable, "-c", JOIN], env=os.environ | session, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"{cluster.cpus}\n"), done.stderr
