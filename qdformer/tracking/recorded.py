"""Models of the MLflow record as segmenters: the champion of a model, or the model that a run trained.

MLflow knows the digest of a checkpoint and the settings of its training, not the weights. They are looked for where
the pipeline keeps them: in the models of workspaces and sweeps, and in DVC's cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow.exceptions import MlflowException

from qdformer.inference import Segmenter
from qdformer.inference.segmenter import CLIP_SECONDS
from qdformer.inference.sharing import CHECKPOINT, VGGISH
from qdformer.tracking.registry import CHAMPION
from qdformer.tracking.store import Store, TrackingError
from qdformer.utils.digests import file_sha256

WHERE = ("models/*", "sweeps/*", "workspaces/*/models/*", "workspaces/*/sweeps/*")
"""Where weights lie below the folder of the project."""
DVC_CACHE = Path(".dvc", "cache", "files", "md5")
SETTINGS = "settings/train.yaml"
"""The file of a run with the settings of its training."""
_LARGEST_LISTING = 100_000  # bytes; DVC's listing of a folder of models is small, that of a data set is not


@dataclass(frozen=True)
class RecordedModel:
    """What the record says of a trained model. `vggish_sha256` is empty for runs of versions that did not store it."""

    run_id: str
    rules: dict[str, Any]
    """Arguments of `Segmenter.from_checkpoint`: the length of the clips and the input rules."""
    checkpoint_sha256: str
    vggish_sha256: str


def from_champion(
    model: str, tracking_uri: str | None = None, *, project: str | Path = ".", **options: Any
) -> Segmenter:
    """The segmenter of a registered model's champion.

    Args:
        model: the registered model, such as `qdformer-stamps`.
        tracking_uri: the store; None: `MLFLOW_TRACKING_URI`, or else `mlflow.db` in the working directory.
        project: the folder of the project, below which the weights are looked for.
        options: `hop` and `merge` of `Segmenter`, and `device`.

    Raises:
        TrackingError: the store cannot be reached, there is no champion, or its weights are not at hand.
    """
    store = Store(tracking_uri)
    version = store.find_version_by_alias(model, CHAMPION)
    if version is None:
        raise TrackingError(f"{store.uri}: {model} has no {CHAMPION}; `make retrain` registers one")
    return _load(recorded_model(store, str(version.run_id)), Path(project), options)


def from_run(run_id: str, tracking_uri: str | None = None, *, project: str | Path = ".", **options: Any) -> Segmenter:
    """The segmenter of the model that a run trained; arguments and errors as for `from_champion`."""
    return _load(recorded_model(Store(tracking_uri), run_id), Path(project), options)


def recorded_model(store: Store, run_id: str) -> RecordedModel:
    """What the record says of the model that a run trained. Raises `TrackingError` if the run has trained none."""
    try:
        tags = store.get_run(run_id).data.tags
    except MlflowException as error:
        raise TrackingError(f"{store.uri}: no run {run_id} ({error.message})") from None
    if "checkpoint_sha256" not in tags:
        raise TrackingError(f"{store.uri}: run {run_id} has trained no model (it has no tag checkpoint_sha256)")
    try:
        values = yaml.safe_load(store.load_text(run_id, SETTINGS))
    except MlflowException as error:
        raise TrackingError(f"{store.uri}: run {run_id} has no {SETTINGS} ({error.message})") from None
    rules = _input_rules(values, f"{SETTINGS} of run {run_id}")
    return RecordedModel(run_id, rules, tags["checkpoint_sha256"], tags.get("vggish_sha256", ""))


def _input_rules(settings: Any, source: str) -> dict[str, Any]:
    """The rules of the settings of a run, which may have other sections and keys if another version recorded them."""
    try:
        download, features, train = (settings[name] for name in ("download", "features", "train"))
        pca, frames = features["pca"], download["frames"]
        rules = {
            "clip_frames": frames or CLIP_SECONDS[download["dataset"]],
            "image_size": train["image_size"],
            "resize": train["resize"],
            "short_clips": features["short_clips"],
            "center": features["center"],
        }
    except (KeyError, TypeError) as error:
        raise TrackingError(f"{source}: do not state how the model's input is made: {error}") from None
    if pca:
        raise TrackingError(f"{source}: features.pca: videos are predicted without VGGish's PCA step; expected null")
    return rules


def find_weights(project: Path, name: str, sha256: str) -> Path | None:
    """The file of this name and digest below the folder of the project or in its DVC cache, or None."""
    return next((path for path in _candidates(project, name) if file_sha256(path) == sha256), None)


def _candidates(project: Path, name: str) -> Iterator[Path]:
    for pattern in WHERE:
        yield from sorted(project.glob(f"{pattern}/{name}"))
    cache = project / DVC_CACHE
    for listing in sorted(cache.glob("*/*.dir")):
        if listing.stat().st_size <= _LARGEST_LISTING:
            for entry in json.loads(listing.read_text(encoding="utf-8")):
                path = cache / entry["md5"][:2] / entry["md5"][2:]
                if entry["relpath"] == name and path.is_file():
                    yield path


def _load(recorded: RecordedModel, project: Path, options: dict[str, Any]) -> Segmenter:
    if not recorded.vggish_sha256:
        raise TrackingError(
            f"run {recorded.run_id}: does not state its VGGish (no tag vggish_sha256), because an earlier version "
            "recorded it; name its checkpoint instead"
        )
    checkpoint, vggish = (
        _found(recorded.run_id, project, name, sha256)
        for name, sha256 in ((CHECKPOINT, recorded.checkpoint_sha256), (VGGISH, recorded.vggish_sha256))
    )
    return Segmenter.from_checkpoint(checkpoint, vggish, **recorded.rules, **options)


def _found(run_id: str, project: Path, name: str, sha256: str) -> Path:
    path = find_weights(project, name, sha256)
    if path is None:
        raise TrackingError(
            f"run {run_id}: no {name} with SHA-256 {sha256[:16]}... below {project.resolve()} or in its DVC cache; "
            "`dvc pull` fetches it from a remote"
        )
    return path
