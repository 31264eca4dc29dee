"""Two Ray nodes of one CPU each on the loopback interface, as a command: `python -m tests.helpers.cluster`.

It prints the address of the cluster, kills the second node when it reads a line, and ends when its input is closed.
"""

from __future__ import annotations

import sys

from ray._private import ray_constants
from ray.cluster_utils import Cluster


def main() -> None:
    ray_constants.ENABLE_RAY_CLUSTER = False  # the nodes' address is then 127.0.0.1
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    second = cluster.add_node(num_cpus=1)
    print(cluster.address, flush=True)
    if sys.stdin.readline():
        cluster.remove_node(second, allow_graceful=False)
        sys.stdin.readline()
    cluster.shutdown()


if __name__ == "__main__":
    main()
