"""The model registry: versions of a model, the alias `champion` of one of them, and the log of its changes.

MLflow does not store the weights: a version points at the checkpoint's checksum in DVC.
"""

from __future__ import annotations

import getpass
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL

from qdformer.tracking.store import Store, TrackingError

if TYPE_CHECKING:
    from qdformer.tracking.promotion import Verdict

CHAMPION = "champion"
SELECTION_METRIC = "clean/miou_dataset"
"""The metric that a run must have for its checkpoint to be registered."""
JUDGED = "judged"
"""The tag of a version that holds its verdict in one line. A version without it has to be compared again."""
WITHDRAWN = "withdrawn"
"""The tag of a version that was taken back by hand; it holds the reason. Such a version is not promoted again."""
ROLLED_BACK = "rolled back"
"""What the reason of a change starts with that was made by hand."""
_LOG = "alias_log."
"""What the tags of a model start with that hold the changes of its alias, one per change."""


@dataclass(frozen=True)
class AliasChange:
    """One change of the alias `champion`: when (UTC), between which versions, by whom, and why."""

    time: str
    before: str | None
    after: str
    by: str
    reason: str


def find_version(model: str, checkpoint_sha256: str) -> ModelVersion | None:
    """The registered version of a checkpoint, or None."""
    versions = Store().search_versions(model)
    return next((version for version in versions if version.tags.get("checkpoint_sha256") == checkpoint_sha256), None)


def find_champion(model: str) -> ModelVersion | None:
    """The version with the alias `champion`, or None."""
    return Store().find_version_by_alias(model, CHAMPION)


def register(
    model: str,
    run_id: str,
    checkpoint_sha256: str,
    source: str,
    card: str,
    origin: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Register a checkpoint as a version of `model` that points at `source`, outside of MLflow.

    `card`, in Markdown, becomes the version's description and the run's file `model_card.md`; `origin` becomes tags.
    Registering the same checkpoint again returns its existing version. Raises `TrackingError` if the run did not
    finish or has no evaluation.
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
        **(origin or {}),
    }
    store.log_text(run_id, card, "model_card.md")
    return store.create_version(model, source, run_id, tags, card)


def judge(model: str, version: ModelVersion, champion: ModelVersion | None, verdict: Verdict) -> str:
    """Store the verdict on `version` and, if it is promoted, give it the alias `champion`; return the verdict's line.

    `champion` is the version that it was compared with. Raises `TrackingError`, and changes nothing, if another
    version has become the champion since. The line is stored last, so that an interrupted call is repeated as a whole,
    with the same result.
    """
    store = Store()
    present = find_champion(model)
    if _number(present) not in (_number(champion), _number(version)):
        raise TrackingError(
            f"model {model}: version {_number(present)} became the champion while version {version.version} was "
            f"compared with {_number(champion) or 'none'}; retrain again"
        )
    line = f"{'champion' if verdict.promoted else 'not champion'}: {verdict.reason}"
    if champion is not None:
        line += f" (compared with version {champion.version})"
        store.set_version_tag(model, version.version, "compared_with", str(champion.version))
    for gate in verdict.gates:
        store.set_version_tag(model, version.version, f"gate.{gate.name.partition(' (')[0]}"[:250], str(gate))
    if verdict.promoted:
        _move_alias(store, model, _number(present), str(version.version), line)
    store.set_version_tag(model, version.version, JUDGED, line)
    return line


def roll_back(model: str, to: str | None, reason: str) -> AliasChange:
    """Give the alias back to version `to`, or to the champion before the present one; return the change.

    The version that loses the alias is marked as withdrawn with `reason`: no retraining promotes it again. Raises
    `TrackingError` if there is no such version.
    """
    store = Store()
    champion = _number(find_champion(model))
    if champion is None:
        raise TrackingError(f"model {model}: no champion yet; expected one that was promoted")
    if to is None:
        promotions = [change for change in read_alias_log(model) if not change.reason.startswith(ROLLED_BACK)]
        to = next((change.before for change in reversed(promotions) if change.after == champion), None)
        if to is None:
            raise TrackingError(
                f"model {model}: version {champion} is its first champion; name the version to go to: TO=..."
            )
    versions = sorted((str(version.version) for version in store.search_versions(model)), key=int)
    if to not in versions:
        raise TrackingError(f"model {model}: no version {to}; there are {', '.join(versions)}")
    if to == champion:
        raise TrackingError(f"model {model}: version {to} is the champion already")
    store.set_version_tag(model, champion, WITHDRAWN, reason)
    store.delete_version_tag(model, to, WITHDRAWN)
    return _move_alias(store, model, champion, to, f"{ROLLED_BACK}: {reason}")


def read_alias_log(model: str) -> list[AliasChange]:
    """All changes of the alias `champion`, the oldest first."""
    tags = Store().model_tags(model)
    return [AliasChange(**json.loads(tags[key])) for key in sorted(tags) if key.startswith(_LOG)]


def _move_alias(store: Store, model: str, before: str | None, after: str, reason: str) -> AliasChange:
    """Log the change, then set the alias. Repeating an interrupted call adds no second entry."""
    log = read_alias_log(model)
    if log and log[-1].after == after and before in (after, log[-1].before):
        change = log[-1]
    else:
        change = AliasChange(datetime.now(UTC).isoformat(timespec="seconds"), before, after, _user(), reason[:4000])
        store.set_model_tag(model, f"{_LOG}{len(log):06}", json.dumps(asdict(change)))
    store.set_alias(model, CHAMPION, after)
    return change


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def version_url_path(model: str, version: Any) -> str:
    """The page of a version, below the dashboard's address."""
    return f"#/models/{model}/versions/{version}"
