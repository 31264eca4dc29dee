"""Wiring: DVC stages and Prefect flows around the library `qdformer`."""
