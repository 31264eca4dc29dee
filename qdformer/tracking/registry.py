"""The model registry: versions of a model, and the alias `champion` of the best of them.

MLflow does not store the weights: a version points at the checkpoint's checksum in DVC.
"""

from __future__ import annotations

from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

from qdformer.tracking.store import Store, TrackingError

CHAMPION = "champion"
SELECTION_METRIC = "clean/miou_dataset"
"""The metric by which a new version must beat the champion."""


def find_version(model: str, checkpoint_sha256: str) -> ModelVersion | None:
    """The registered version of a checkpoint, or None."""
    versions = Store().search_versions(model)
    return next((version for version in versions if version.tags.get("checkpoint_sha256") == checkpoint_sha256), None)


def find_champion(model: str) -> ModelVersion | None:
    """The version with the alias `champion`, or None."""
    return Store().find_version_by_alias(model, CHAMPION)


def register(model: str, run_id: str, checkpoint_sha256: str, source: str, card: str) -> ModelVersion:
    """Register a checkpoint as a version of `model` that points at `source`, outside of MLflow.

    `card`, in Markdown, becomes the version's description and the run's file `model_card.md`. Registering the same
    checkpoint again returns its existing version. Raises `TrackingError` if the run did not finish or has no
    evaluation.
    """
    if version := find_version(model, checkpoint_sha256):
        return version
    store = Store()
    run = store.get_run(run_id)
    metrics, status = run.data.metrics, run.info.status
    if status != "FINISHED" or SELECTION_METRIC not in metrics:
        evaluated = "with" if SELECTION_METRIC in metrics else "without"
        raise TrackingError(
            f"run {run_id}: is {status} {evaluated} {SELECTION_METRIC}; "
            "only a finished run that was evaluated can be registered"
        )
    store.create_model_if_missing(model)
    tags = {
        "checkpoint_sha256": checkpoint_sha256,
        "data_digest": run.data.tags.get("data_digest", ""),
        SELECTION_METRIC: str(metrics[SELECTION_METRIC]),
        MLFLOW_MODEL_IS_EXTERNAL: "true",
    }
    store.log_text(run_id, card, "model_card.md")
    return store.create_version(model, source, run_id, tags, card)


def promote(model: str, version: ModelVersion) -> str:
    """Give `version` the alias `champion` if its `SELECTION_METRIC` is higher than the champion's; return the verdict.

    The verdict is stored last, as the version's tag `judged`: a version without the tag has to be compared again.
    """
    store = Store()
    champion = find_champion(model)
    score = float(version.tags[SELECTION_METRIC])
    if champion is None or str(champion.version) == str(version.version):
        is_best, verdict = True, f"champion with {SELECTION_METRIC} {score:.3f}"
    else:
        best = float(champion.tags[SELECTION_METRIC])
        is_best = score > best
        verdict = (
            f"{'champion' if is_best else 'not champion'}: {SELECTION_METRIC} {score:.3f}, "
            f"version {champion.version} has {best:.3f}"
        )
        if version.tags["data_digest"] != champion.tags["data_digest"]:
            verdict += " on other data"
    if is_best:
        store.set_alias(model, CHAMPION, version.version)
    store.set_version_tag(model, version.version, "judged", verdict)
    return verdict
