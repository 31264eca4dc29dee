"""Flow `retrain`: if anything changed, reproduce, register the checkpoint, and make the better one the champion."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import Flow, flow, runtime, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.states import Completed, State

from pipelines.arrivals import QUARANTINE, has_arrivals, take_in_arrivals
from pipelines.console import markdown_table
from pipelines.flows.liveness import marked_alive
from pipelines.flows.pipeline import run_dvc_repro
from pipelines.flows.reproduce import artifact_key, record_in_mlflow, show_results
from pipelines.flows.say import say
from pipelines.notify import notify
from pipelines.record import current_verdict, require_tracking_store
from pipelines.workspace import ACCEPTED, BusyError, is_up_to_date, locked_workspace
from qdformer.config.settings import Settings
from qdformer.data.accepted import read_accepted
from qdformer.utils.processes import end_with_parent

if TYPE_CHECKING:
    from qdformer.monitoring.profile import Profile


def _tell_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    notify("failure", f"{flow_run.name}: {state.name}: {state.message}")


@flow(name="retrain", flow_run_name="retrain {data}", on_failure=[_tell_failure], on_crashed=[_tell_failure])
def retrain(data: str = "") -> str | State[str]:
    """Train and evaluate with the newest settings, data and code, if they changed; return the verdict.

    `data` names a preset; empty stands for params.yaml as it is. The alias `champion` moves only to a checkpoint that
    passes the gates of `promote`. After an interruption the next call continues. A scheduled run ends as `Skipped` if
    another run is at work.
    """
    scheduled = bool(runtime.deployment.id)
    if scheduled:
        end_with_parent()  # the process of a schedule or worker that was killed leaves no training behind
    with marked_alive():
        try:
            return _retrain(data)
        except BusyError as error:
            if not scheduled:
                raise
            say(f"Skipped: {error}")
            return Completed(name="Skipped", message=str(error))


def _retrain(data: str) -> str:
    require_tracking_store()
    with locked_workspace(data) as (settings, workspace, lock):
        if has_arrivals(workspace):
            take_in(settings, workspace, data)
        if is_up_to_date(workspace) and (verdict := current_verdict(settings, workspace, data)):
            say(f"Nothing changed: {verdict}")
            return verdict
        seconds: dict[str, float] = {}
        drift = measure_drift(settings, workspace, data, lock, seconds)
        seconds |= run_dvc_repro(workspace, lock)
        record = record_in_mlflow(settings, workspace)
        verdict = register_and_judge(settings, workspace, data, record.run_id, drift)
    show_results(data, settings, workspace, record, seconds)
    say(f"Registered: {verdict}")
    return verdict


@task(cache_policy=NO_CACHE)
def take_in(settings: Settings, workspace: Path, data: str) -> None:
    """Check the clips that arrived; the good ones join the training split, the others are set apart."""
    intake = take_in_arrivals(settings, workspace)
    say(f"New clips: {len(intake.accepted)} accepted, {len(intake.quarantined)} set apart in {workspace / QUARANTINE}")
    for name, reason in intake.quarantined.items():
        say(f"Set apart: {name}: {reason}")
    if intake.quarantined:
        named = "; ".join(f"{name}: {reason}" for name, reason in list(intake.quarantined.items())[:20])
        notify("quarantine", f"{len(intake.quarantined)} set apart of {data or settings.download.dataset}: {named}")
        rows = [[name, reason] for name, reason in intake.quarantined.items()]
        key = f"quarantine-{data or settings.download.dataset}".lower().replace("_", "-")
        create_markdown_artifact(f"## Clips set apart\n\n{markdown_table(['clip', 'reason'], rows)}", key=key)


def measure_drift(settings: Settings, workspace: Path, data: str, lock: int, seconds: dict[str, float]) -> str:
    """Compare new clips with the champion's training clips before anything is trained; return the report in one line.

    It is empty if there is no champion, or if it knows all clips. The stages up to the features of the training are run
    for it, and their times added to `seconds`. Raises `DriftError` if `promote.drift` is `stop` and the clips differ.
    """
    if not read_accepted(workspace / ACCEPTED):
        return ""
    from pipelines import drift, promotion  # these imports take seconds
    from qdformer import tracking

    champion = tracking.find_champion(promotion.model_name(settings, data))
    if champion is None:
        return ""
    reference = drift.fetch_champion_profile(settings, workspace, champion)
    if reference is not None and not drift.unknown_clips(workspace, reference):
        return ""
    seconds |= run_dvc_repro(workspace, lock, (drift.features_stage(settings),))
    return judge_drift(settings, workspace, data, reference, str(champion.version))


@task(cache_policy=NO_CACHE)
def judge_drift(settings: Settings, workspace: Path, data: str, reference: Profile | None, version: str) -> str:
    """Tell how the new clips differ from the training clips of the champion, and refuse them if that is wanted."""
    from pipelines import drift

    found = drift.measure(settings, workspace, reference, version)
    say(f"Drift: {found}")
    if found.flagged or not found.complete:
        notify("drift", f"{data or settings.download.dataset}: {found}")
    rows = [
        [
            shift.aspect,
            f"{shift.mmd2:+.4f}",
            f"{shift.p_value:.2g}",
            "**differs**" if shift.flagged else "",
            shift.detail,
        ]
        for shift in found.shifts
    ]
    table = markdown_table(["aspect", "MMD²", "p-value", "", "largest changes"], rows) if rows else ""
    key = artifact_key("drift", data or settings.download.dataset)
    create_markdown_artifact(f"## Drift of new clips\n\n{found}\n\n{table}", key=key, description=str(found))
    drift.require_allowed(settings, found)
    return str(found)


@task(cache_policy=NO_CACHE)
def register_and_judge(settings: Settings, workspace: Path, data: str, run_id: str, drift: str) -> str:
    """Register the workspace's checkpoint and compare it with the champion; show the verdict on the flow's page."""
    from pipelines import promotion  # these imports take seconds
    from qdformer import tracking

    model = promotion.model_name(settings, data)
    version = promotion.register_checkpoint(settings, workspace, model, run_id, drift)
    verdict = promotion.judge_checkpoint(settings, workspace, model, version)
    line = current_verdict(settings, workspace, data)
    notify("promotion" if verdict.promoted else "refusal", str(line))
    assert line is not None, "the verdict has just been stored"
    gates = [
        [
            gate.name,
            f"{gate.value:+.4f}",
            "" if gate.low is None else f"{gate.low:+.4f} to {gate.high:+.4f}",
            gate.limit,
            "passed" if gate.passed else "**failed**",
        ]
        for gate in verdict.gates
    ]
    table = markdown_table(["gate", "change", "paired interval", "expected", "outcome"], gates) if gates else ""
    told = f"\n\nDrift: {drift}" if drift else ""
    page = tracking.dashboard_url() + tracking.version_url_path(model, version.version)
    create_markdown_artifact(
        f"## {'Promoted' if verdict.promoted else 'Refused'}: {model} version {version.version}\n\n{line}\n\n{table}"
        f"{told}\n\n[The version in MLflow]({page})",
        key=f"verdict-{model}".lower(),
        description=line,
    )
    return line
