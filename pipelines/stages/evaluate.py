"""Stage `evaluate`: one checkpoint under every audio condition and control -> reports."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
import torch
from tqdm import tqdm

from pipelines.cli import stage_main
from pipelines.stages.features import feature_recipe
from pipelines.workspace import CHECKPOINT, REPORTS, provenance
from qdformer import tracking
from qdformer.audio.features.store import FeatureStore
from qdformer.audio.noise.collect import read_noise_table
from qdformer.config.settings import Settings
from qdformer.data.dataset import AVSDataset, Batch, build_loader
from qdformer.data.manifest import read_manifest
from qdformer.evaluation.controls import Constant, OffScreen, Shuffled, noise_features
from qdformer.evaluation.evaluate import Evaluation, evaluate
from qdformer.evaluation.tokens import AudioTokens
from qdformer.models import Prediction
from qdformer.reporting import plots
from qdformer.reporting.result import write_result, write_token_figures
from qdformer.training.checkpoint import load_model


def evaluate_checkpoint(
    settings: Settings, workspace: Path, checkpoint: Path, out: Path, names: Iterable[str] | None = None
) -> dict[str, Evaluation]:
    """Measure `checkpoint` under the conditions and controls `names` (all by default) and write the reports to `out`.

    `qdformer.config.Evaluate` says what the controls are; they take the clean sound where they take the clips'.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    manifest = read_manifest(workspace / "data" / "dataset")
    made = feature_recipe(settings.features, workspace)
    stores = {
        name: FeatureStore(workspace / "data" / "features" / f"{name}.h5", **asdict(made.info(name)))
        for name in settings.mix.conditions
    }
    left_out = frozenset().union(*(store.left_out for store in stores.values()))  # the same clips in all conditions
    usable = manifest[~manifest["uid"].isin(left_out)]
    clips = usable[usable["split"] == settings.evaluate.split]
    uids = clips["uid"].tolist()
    frames = dict(zip(uids, clips["frames"], strict=True))
    generator = np.random.default_rng(settings.evaluate.seed)
    shown = set(generator.choice(uids, min(settings.evaluate.pictures, len(uids)), replace=False))
    models = {"trained": load_model(checkpoint)}
    names = list(names or (*settings.mix.conditions, *settings.evaluate.controls))
    if "untrained" in names:
        models["untrained"] = load_model(checkpoint, trained=False)
    tokens = AudioTokens(len(models["trained"][1]))

    def features(name: str) -> Mapping[str, np.ndarray]:
        store, seed = stores.get(name, stores["clean"]), settings.evaluate.seed
        if name == "shuffled":
            return Shuffled(store, frames, seed)
        if name == "silence":
            return Constant(made.load().embed_silence(1)[0], frames)
        if name == "noise":
            return noise_features(clips, read_noise_table(workspace / "data" / "noise"), made.load(), settings.mix.seed)
        if name == "offscreen":
            return OffScreen(store, clips, usable, seed)
        return store

    results = {}
    with tqdm(total=len(names) * len(uids), unit="clip", disable=None) as bar:
        for name in names:
            bar.set_description(name)
            model, classes = models["untrained" if name == "untrained" else "trained"]
            model.to(device)

            def predict(batch: Batch, name=name, model=model) -> Prediction:
                valid_BT = batch.valid_BT.to(device)
                prediction = model.predict(batch.images_BTCHW.to(device), batch.audio_BTA.to(device), valid_BT)
                if name == "clean":
                    tokens.update(batch.uids, prediction.output, valid_BT)
                return prediction

            seen = settings.train
            data = AVSDataset(clips, features(name), seen.image_size, resize=seen.resize, task=seen.task)
            results[name] = evaluate(
                predict,
                build_loader(data, settings.evaluate.batch_size),
                classes,
                bar.update,
                manifest=clips,
                picture_uids=shown if name == "clean" else (),
                bootstrap=settings.evaluate.bootstrap,
                seed=settings.evaluate.seed,
            )
    write_result(results, classes, out)
    write_token_figures(tokens, dict(zip(uids, clips["classes"], strict=True)), classes, out)
    history = pandas.read_csv(checkpoint.with_name("history.csv")).to_dict("records")
    plots.save(plots.training_curves(history), out / "figures" / "training.png")
    return results


def main(settings: Settings) -> None:
    workspace, checkpoint, out = Path.cwd(), CHECKPOINT, REPORTS
    started = time.monotonic()
    evaluate_checkpoint(settings, workspace, checkpoint, out)
    seconds = time.monotonic() - started
    tracking.log_evaluation(
        out, settings, provenance(workspace), checkpoint, workspace / "data" / "dataset", seconds=seconds
    )


if __name__ == "__main__":
    stage_main(main)
