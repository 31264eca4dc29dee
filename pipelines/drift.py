"""Drift in the retraining: the clips that were accepted since the champion's training, against its training clips."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.arrivals import QUARANTINE
from pipelines.cli import CommandError
from pipelines.workspace import ACCEPTED, VGGISH, provenance
from qdformer import tracking
from qdformer.audio.features.store import FeatureStore
from qdformer.data.accepted import read_accepted
from qdformer.monitoring.drift import MIN_CLIPS, Drift, measure_drift, too_few
from qdformer.monitoring.profile import Profile, load_profile, profile_clips, save_profile
from qdformer.utils.digests import file_sha256

if TYPE_CHECKING:
    from collections.abc import Collection

    from mlflow.entities.model_registry import ModelVersion

    from qdformer.config.settings import Settings

PROFILE = "training_profile.npz"
"""The file of a run that describes the clips that its checkpoint was trained on."""


class DriftError(CommandError):
    """The new clips are not to be trained on; the message says why and what can be done."""


def features_stage(settings: Settings) -> str:
    """The DVC stage that computes the features which clips are compared by: those of the training."""
    return f"features@{settings.train.condition}"


def workspace_profile(settings: Settings, workspace: Path, only: Collection[str] | None = None) -> Profile:
    """The profile of the training clips of the workspace as they are, or of those named in `only`."""
    weights = file_sha256(workspace / VGGISH)
    path = workspace / "data" / "features" / f"{settings.train.condition}.h5"
    return profile_clips(workspace / "data" / "dataset", FeatureStore(path, weights_sha256=weights), weights, only)


def record_profile(settings: Settings, workspace: Path, run_id: str) -> None:
    """Store the profile of the workspace's training clips as a file of the run."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, PROFILE)
        save_profile(path, workspace_profile(settings, workspace))
        tracking.Store().log_file(run_id, path)


def fetch_champion_profile(settings: Settings, workspace: Path, champion: ModelVersion) -> Profile | None:
    """The profile of the champion's training clips, kept in the workspace's cache.

    A champion that was registered without one gets it from the workspace, as long as that still holds the champion's
    data; otherwise the result is None.
    """
    path = workspace / ".cache" / "profiles" / f"{champion.tags['checkpoint_sha256'][:16]}.npz"
    if not path.is_file():
        if name := champion.tags.get("training_profile"):
            with tempfile.TemporaryDirectory() as folder:
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(tracking.Store().download(str(champion.run_id), name, Path(folder)), path)
        elif champion.tags.get("data_digest") == provenance(workspace)["data_digest"]:
            save_profile(path, workspace_profile(settings, workspace))
        else:
            return None
    return load_profile(path)


def unknown_clips(workspace: Path, reference: Profile) -> list[str]:
    """The accepted clips that the champion was not trained on."""
    known = set(reference.uids)
    return [row["uid"] for row in read_accepted(workspace / ACCEPTED) if row["uid"] not in known]


def measure(settings: Settings, workspace: Path, reference: Profile | None, version: str) -> Drift:
    """Compare the accepted clips that the champion does not know with its own training clips, `reference`.

    The features of the clips must have been computed. `version` is the champion's.
    """
    if reference is None:
        new = len(read_accepted(workspace / ACCEPTED))
        reason = f"version {version}, the champion, was registered without a profile of its training clips"
        return Drift(new, 0, not_measured=reason, complete=False)
    new_clips = unknown_clips(workspace, reference)
    if len(new_clips) < MIN_CLIPS:
        return Drift(len(new_clips), len(reference.uids), not_measured=too_few(len(new_clips)))
    return measure_drift(reference, workspace_profile(settings, workspace, new_clips), settings.promote.drift_p_value)


def require_allowed(settings: Settings, drift: Drift) -> None:
    """Raise `DriftError` if `promote.drift` is `stop` and the clips differ, or cannot be compared completely."""
    if settings.promote.drift == "stop" and (drift.flagged or not drift.complete):
        raise DriftError(
            f"promote.drift: stop: {drift}. Nothing was trained. Move these clips to {QUARANTINE} with make set-apart, "
            "or set promote.drift to warn to train on them"
        )
