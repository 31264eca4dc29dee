"""Stage `evaluate`: one checkpoint under every audio condition and control -> reports."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas
import torch
from tqdm import tqdm

from pipelines.cli import stage_main
from pipelines.stages.features import feature_recipe, model_features
from pipelines.workspace import CHECKPOINT, REPORTS, provenance
from qdformer import tracking
from qdformer.audio.features.store import FeatureStore
from qdformer.config.base import SettingsError
from qdformer.data.dataset import AVSDataset, build_loader
from qdformer.data.manifest import read_manifest
from qdformer.evaluation.controls import ConditionFeatures
from qdformer.evaluation.evaluate import Evaluator
from qdformer.evaluation.probe import fit_probe, probe_scores, track_scores
from qdformer.evaluation.tokens import AudioTokens
from qdformer.reporting import plots
from qdformer.reporting.result import write_result, write_token_figures
from qdformer.training.checkpoint import load_model

if TYPE_CHECKING:
    from qdformer.config.settings import Settings
    from qdformer.evaluation.result import Evaluation


def evaluate_checkpoint(
    settings: Settings, workspace: Path, checkpoint: Path, out: Path, names: Iterable[str] | None = None
) -> dict[str, Evaluation]:
    """Evaluate `checkpoint` under the conditions and controls `names` (default: all); write the reports to `out`."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options, train = settings.evaluate, settings.train
    manifest = read_manifest(workspace / "data" / "dataset")
    recipe = feature_recipe(settings.features, workspace)
    stores = {
        name: FeatureStore(workspace / "data" / "features" / f"{name}.h5", **asdict(recipe.info(name)))
        for name in settings.mix.conditions
    }
    names = list(names or (*settings.mix.conditions, *options.controls))
    track_stores = _track_stores(settings, workspace, names)
    all_stores = (*stores.values(), *track_stores.values())
    left_out = frozenset().union(*(store.left_out for store in all_stores))  # the same clips in all conditions
    usable = manifest[~manifest["uid"].isin(left_out)]
    clips = usable[usable["split"] == options.split]
    uids = clips["uid"].tolist()
    shown = set(np.random.default_rng(options.seed).choice(uids, min(options.pictures, len(uids)), replace=False))
    features = ConditionFeatures(
        stores, clips, usable, recipe, workspace / "data" / "noise", options.seed, settings.mix.seed
    )
    trained, classes = load_model(checkpoint)
    untrained = load_model(checkpoint, trained=False)[0] if "untrained" in names else None
    probe = fit_probe(usable, stores["clean"], classes, train.task, options.seed)
    tracks = track_scores(probe, stores["clean"], clips, recipe)
    tokens = AudioTokens(len(classes))
    sounds = {name: features.build(name) for name in names}
    evaluators = {
        name: Evaluator(
            classes,
            manifest=clips,
            picture_uids=shown if name == "clean" else (),
            class_scores={  # of the sound as it is, not of separated tracks
                **probe_scores(probe, sound, clips, classes),
                "tracks": tracks if name == "clean" else {},
            },
        )
        for name, sound in sounds.items()
    }
    sounds = {**sounds, **track_stores}
    models = {name: untrained if name == "untrained" and untrained is not None else trained for name in names}
    data = AVSDataset(clips, sounds[names[0]], train.image_size, resize=train.resize, task=train.task)
    with torch.inference_mode(), tqdm(total=len(uids), unit="clip", disable=None) as bar:
        for batch in build_loader(data, options.batch_size):
            images_BTCHW, valid_BT = batch.images_BTCHW.to(device), batch.valid_BT.to(device)
            # the pictures of all conditions are the same, and most of the work is the backbone's
            maps = {model: model.to(device).backbone_maps(images_BTCHW) for model in set(models.values())}
            for name, model in models.items():
                heard = batch.with_sound(sounds[name])
                prediction = model.predict(images_BTCHW, heard.audio_BTA.to(device), valid_BT, maps[model])
                if name == "clean":
                    tokens.update(batch.uids, prediction.output, valid_BT)
                evaluators[name].update(heard, prediction)
            bar.update(len(batch.uids))
    results = {name: evaluator.result(options.bootstrap, options.seed) for name, evaluator in evaluators.items()}
    write_result(results, classes, out)
    write_token_figures(tokens, dict(zip(uids, clips["classes"], strict=True)), classes, out)
    history = checkpoint.with_name("history.csv")
    if history.is_file():  # a published checkpoint has none
        curves = plots.training_curves(pandas.read_csv(history).to_dict("records"))
        plots.save(curves, out / "figures" / "training.png")
    return results


def _track_stores(settings: Settings, workspace: Path, names: list[str]) -> dict[str, FeatureStore]:
    """The features of the conditions `names` for a model that takes separated tracks; empty for other models."""
    if not settings.train.model.takes_tracks:
        return {}
    if controls := [name for name in names if name not in settings.mix.conditions]:
        raise SettingsError(
            f"train.model.separate: the sounds of {', '.join(controls)} are not separated; expected names of "
            "mix.conditions only"
        )
    return {name: model_features(settings, workspace, name) for name in names}


def main(settings: Settings) -> None:
    workspace, checkpoint, out = Path.cwd(), CHECKPOINT, REPORTS
    started = time.monotonic()
    evaluate_checkpoint(settings, workspace, checkpoint, out)
    seconds = time.monotonic() - started
    # an evaluation is not thrown away because the store does not answer
    with tracking.warn_if_unreachable("the evaluation is recorded when the flow ends, or by the next `make repro`"):
        tracking.log_evaluation(
            out, settings, provenance(workspace), checkpoint, workspace / "data" / "dataset", seconds=seconds
        )


if __name__ == "__main__":
    stage_main(main)
