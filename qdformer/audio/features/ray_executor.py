"""Embed clips on a Ray cluster, whose nodes have the audio files and the weights under the same paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from typing import Any

import ray
import torch

from qdformer.audio.features.extract import Clip, Embedder, EmbedderConfig, Embedding
from qdformer.utils.ray_session import ray_session

CHUNKS_PER_WORKER = 2  # one in progress and one waiting
MAX_RESTARTS = 2  # of a worker that dies; its chunk is computed again


@ray.remote(num_cpus=1, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class EmbedWorker:
    """Runs the network on one CPU."""

    def __init__(self, config: EmbedderConfig) -> None:
        torch.set_num_threads(1)
        self._config = config
        self._embedder: Embedder | None = None

    def embed(self, chunk: list[Clip]) -> list[Embedding]:
        """Embed a chunk. The network is loaded with the first one, where its errors keep their class."""
        self._embedder = self._embedder or self._config.load()
        return self._embedder.embed(chunk)


def embed_on_ray(config: EmbedderConfig, chunks: Iterable[list[Clip]]) -> Iterator[list[Embedding]]:
    """An `Executor` with one worker per CPU of the open Ray session, or of one that is opened for the call.

    At most `CHUNKS_PER_WORKER` chunks per worker are in flight, and a result leaves Ray's object store when it is
    returned, so that the memory use does not depend on the size of the data set.
    """
    create_worker: Any = EmbedWorker  # `remote` is added by the decorator
    with ray_session():
        workers = [create_worker.remote(config) for _ in range(max(1, int(ray.cluster_resources().get("CPU", 1))))]
        work = iter(chunks)
        running = {
            worker.embed.remote(chunk): worker
            for worker, chunk in zip(islice(cycle(workers), CHUNKS_PER_WORKER * len(workers)), work, strict=False)
        }
        try:
            while running:
                (ready,), _ = ray.wait(list(running), num_returns=1)
                worker = running.pop(ready)
                result = ray.get(ready)
                del ready
                running |= {worker.embed.remote(chunk): worker for chunk in islice(work, 1)}
                yield result
        finally:
            for worker in workers:
                ray.kill(worker)
