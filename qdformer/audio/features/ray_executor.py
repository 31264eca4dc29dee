"""Embed clips over a Ray cluster; its nodes see the sounds and the weights under the same paths."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from itertools import cycle, islice

import ray
import torch

from qdformer.audio.features.extract import Clip, Embedder, EmbedderConfig, Embedding

CHUNKS_PER_WORKER = 2  # chunks for each worker: one in work, one waiting
MAX_RESTARTS = 2  # of a worker that dies, or whose node does; its chunk is done again


@ray.remote(num_cpus=1, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
class EmbedWorker:
    """Holds the network on one CPU."""

    def __init__(self, recipe: EmbedderConfig) -> None:
        torch.set_num_threads(1)
        self._recipe = recipe
        self._embedder: Embedder | None = None

    def embed(self, chunk: list[Clip]) -> list[Embedding]:
        """Embed a chunk; the network is loaded for the first, where an error still has its own class."""
        self._embedder = self._embedder or self._recipe.load()
        return self._embedder.embed(chunk)


def embed_on_ray(recipe: EmbedderConfig, chunks: Iterable[list[Clip]]) -> Iterator[list[Embedding]]:
    """An `Executor` with a worker for each CPU of the cluster that `RAY_ADDRESS` names, or of the open session.

    At most `CHUNKS_PER_WORKER` chunks for each worker are on their way, and each result is dropped from Ray's
    store when it was taken, so that the data set is never in memory as a whole.
    """
    with _session():
        workers = [EmbedWorker.remote(recipe) for _ in range(max(1, int(ray.cluster_resources().get("CPU", 1))))]
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


@contextlib.contextmanager
def _session() -> Iterator[None]:
    """A Ray session for the block; one that is already open is used and left open."""
    if ray.is_initialized():
        yield
        return
    ray.init(logging_level="error", log_to_driver=False)  # it reads RAY_ADDRESS
    try:
        yield
    finally:
        ray.shutdown()
