"""Champion and challenger: both evaluated on the same test clips by the same code, compared, and judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas
import yaml

from pipelines.cli import CommandError
from pipelines.drift import PROFILE, record_profile
from pipelines.environment import dvc_environment
from pipelines.settings import is_default
from pipelines.workspace import CHECKPOINT, PARAMS, REPORTS, VGGISH, locked_outs, locked_stage, provenance, restore_out
from qdformer import tracking
from qdformer.config.settings import read_yaml
from qdformer.reporting.result import RESAMPLES, read_resamples
from qdformer.utils.digests import file_sha256, short_digest
from qdformer.utils.files import new_folder, write_text

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from qdformer.config.settings import Settings

INPUT_SETTINGS = ("task", "resize", "image_size")
"""The settings of a training that its evaluation needs too: how a model is given its pictures."""
_KEPT = (RESAMPLES, "classes.csv", "clips.csv")


class ChampionError(CommandError):
    """The champion cannot be evaluated again, so that no challenger can be compared with it."""


def model_name(settings: Settings, preset: str) -> str:
    """The registered model of a preset: models of other sizes or tasks on the same data have names of their own."""
    if is_default(preset) or preset == settings.download.dataset:
        return tracking.experiment_name(settings)
    return f"qdformer-{preset}"


def register_checkpoint(settings: Settings, workspace: Path, model: str, run_id: str, drift: str = "") -> ModelVersion:
    """Register the workspace's checkpoint as a version that points into DVC, with all that its evaluation needs.

    The run gets the profile of the training clips, and the version the report on `drift` of its new clips as a tag.
    """
    from qdformer.tracking.model_card import model_card

    outs = locked_outs(workspace)
    source = f"dvc://{outs[CHECKPOINT.parent.as_posix()]}/{CHECKPOINT.name}"
    intervals = json.loads((workspace / REPORTS / "intervals.json").read_text(encoding="utf-8"))
    train = settings.train.model_dump()
    origin = {
        "dvc.model": outs[CHECKPOINT.parent.as_posix()],
        "dvc.vggish": outs.get(VGGISH.parent.as_posix(), ""),
        "input": json.dumps({key: train[key] for key in INPUT_SETTINGS}),
        "training_profile": PROFILE,
    }
    if drift:
        origin["drift"] = drift
    record_profile(settings, workspace, run_id)
    card = model_card(settings, provenance(workspace), intervals, source)
    return tracking.register(model, run_id, file_sha256(workspace / CHECKPOINT), source, card, origin)


def judge_checkpoint(settings: Settings, workspace: Path, model: str, version: ModelVersion) -> tracking.Verdict:
    """Compare the workspace's checkpoint, registered as `version`, with the champion; store and return the verdict.

    Without a champion the version becomes the first one. Raises `ChampionError` if the champion's scores are of other
    code, data or settings and it cannot be evaluated again: stale scores are never compared.
    """
    challenger = _keep_scores(workspace, version, workspace / REPORTS)
    champion = tracking.find_champion(model)
    if reason := version.tags.get(tracking.WITHDRAWN):
        verdict = tracking.Verdict(False, (), f"taken back by hand before: {reason}")
    elif champion is None:
        score = float(challenger.metric("clean", settings.promote.metric)[0])
        verdict = tracking.Verdict(True, (), f"the first version, with clean/{settings.promote.metric} {score:.3f}")
    elif str(champion.version) == str(version.version):
        reason = tracking.read_alias_log(model)[-1].reason  # a promotion that was interrupted, or is repeated
        verdict = tracking.Verdict(True, (), reason.removeprefix("champion: "))
    else:
        verdict = tracking.compare(_champion_scores(workspace, champion), challenger, settings.promote)
    tracking.judge(model, version, champion if verdict.gates else None, verdict)
    return verdict


def evaluation_identity(workspace: Path) -> str:
    """Names the protocol of the workspace's evaluation: its code, data, sounds and settings, without the models."""
    stage = locked_stage(workspace, "evaluate")
    models = (CHECKPOINT.parent.as_posix(), VGGISH.parent.as_posix(), "data/features")
    deps = [f"{dep['path']} {dep['md5']}" for dep in stage.get("deps", ()) if dep["path"] not in models]
    sounds = [f"{path} {md5}" for path, md5 in locked_outs(workspace).items() if path.startswith("data/mixed/")]
    return short_digest([*sorted(deps), *sorted(sounds), json.dumps(stage.get("params", {}), sort_keys=True)])


def read_scorecard(reports: Path) -> tracking.Scorecard:
    """What the gates need of the evaluation in the folder `reports`."""
    clean = [
        table[table["condition"] == "clean"]
        for table in (pandas.read_csv(reports / name, keep_default_na=False) for name in ("classes.csv", "clips.csv"))
    ]
    classes, clips = clean
    iou = pandas.to_numeric(classes["iou"], errors="coerce")
    counts = Counter(name for names in clips["classes"] for name in str(names).split("_") if name)
    return tracking.Scorecard(read_resamples(reports), dict(zip(classes["name"], iou, strict=True)), counts)


def _champion_scores(workspace: Path, champion: ModelVersion) -> tracking.Scorecard:
    """The champion's scores by the workspace's protocol; it is evaluated again if none are kept."""
    kept = _scores_folder(workspace, champion)
    if not kept.is_dir():
        print(f"Evaluating the champion, version {champion.version}, with the present code and data", flush=True)
        reports = _evaluate_again(workspace, champion)
        return _keep_scores(workspace, champion, reports)
    return read_scorecard(kept)


def _evaluate_again(workspace: Path, champion: ModelVersion) -> Path:
    """Evaluate the champion in a folder of its own, with its own VGGish; return the folder of the reports."""
    folder = workspace / ".cache" / "champion"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    what = f"the champion, version {champion.version} of {champion.name}"
    remedy = "get them with `dvc pull`, or choose another champion: make rollback TO=VERSION"
    for tag, target in (("dvc.model", CHECKPOINT.parent), ("dvc.vggish", VGGISH.parent)):
        md5 = champion.tags.get(tag, "")
        if not md5 or not restore_out(workspace, md5, folder / target):
            raise ChampionError(f"{what}: {target} is not in DVC's cache, so that it cannot be evaluated; {remedy}")
    values: dict[str, Any] = read_yaml(workspace / PARAMS)
    values["train"] |= json.loads(champion.tags.get("input", "{}"))
    write_text(folder / PARAMS, yaml.safe_dump(values, sort_keys=False))
    same_vggish = champion.tags["dvc.vggish"] == locked_outs(workspace).get(VGGISH.parent.as_posix())
    (folder / "data").mkdir()
    for source in (workspace / "data").iterdir():
        if same_vggish or source.name != "features":
            (folder / "data" / source.name).symlink_to(os.path.relpath(source.resolve(), folder / "data"))
    command = [sys.executable, "-m", "pipelines.champion"]
    environment = dvc_environment() | {"PYTHONPATH": os.pathsep.join((str(_root()), os.environ.get("PYTHONPATH", "")))}
    if subprocess.run(command, cwd=folder, env=environment).returncode:
        raise ChampionError(f"{what}: the present code cannot evaluate it; choose another champion with make rollback")
    return folder / REPORTS


def _keep_scores(workspace: Path, version: ModelVersion, reports: Path) -> tracking.Scorecard:
    """Keep the scores of a version by the workspace's protocol."""
    with new_folder(_scores_folder(workspace, version)) as folder:
        for name in _KEPT:
            shutil.copyfile(reports / name, folder / name)
    return read_scorecard(_scores_folder(workspace, version))


def _scores_folder(workspace: Path, version: ModelVersion) -> Path:
    sha256 = version.tags["checkpoint_sha256"]
    return workspace / ".cache" / "scores" / f"{sha256[:16]}-{evaluation_identity(workspace)}"


def _root() -> Path:
    """The folder that holds the packages `pipelines` and `qdformer`."""
    return Path(__file__).resolve().parents[1]
