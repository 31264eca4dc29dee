"""Stage `evaluate`: one checkpoint under every audio condition and control -> reports."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
import torch
from tqdm import tqdm

from pipelines.cli import stage_main
from pipelines.stages.features import recipe
from pipelines.workspace import provenance
from qdformer import plots, tracking
from qdformer.audio.store import FeatureStore
from qdformer.data.dataset import AVSDataset, Batch, Constant, Shuffled, build_loader
from qdformer.data.manifest import Classes, read_manifest
from qdformer.evaluation import SCORES, Evaluation, evaluate
from qdformer.model import Prediction
from qdformer.settings import Settings
from qdformer.training.checkpoint import load_model


def evaluate_checkpoint(
    settings: Settings, workspace: Path, checkpoint: Path, out: Path, names: Iterable[str] | None = None
) -> dict[str, Evaluation]:
    """Measure `checkpoint` under the conditions and controls `names` (all by default) and write the reports to `out`.

    The controls use the clean sound: `shuffled` gives each clip another's, `silence` none, and
    `untrained` keeps the sound and takes the model as it was before training.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    manifest = read_manifest(workspace / "data" / "dataset")
    made = recipe(settings.features, workspace)
    stores = {
        name: FeatureStore(workspace / "data" / "features" / f"{name}.h5", **asdict(made.info(name)))
        for name in settings.mix.conditions
    }
    left_out = frozenset().union(*(store.left_out for store in stores.values()))  # the same clips in all conditions
    clips = manifest[(manifest["split"] == settings.evaluate.split) & ~manifest["uid"].isin(left_out)]
    uids = clips["uid"].tolist()
    frames = dict(zip(uids, clips["frames"], strict=True))
    generator = np.random.default_rng(settings.evaluate.seed)
    shown = set(generator.choice(uids, min(settings.evaluate.pictures, len(uids)), replace=False))
    models = {"trained": load_model(checkpoint)}
    names = list(names or (*settings.mix.conditions, *settings.evaluate.controls))
    if "untrained" in names:
        models["untrained"] = load_model(checkpoint, trained=False)

    def features(name: str) -> Mapping[str, np.ndarray]:
        store = stores.get(name, stores["clean"])
        if name == "shuffled":
            return Shuffled(store, frames, settings.evaluate.seed)
        if name == "silence":
            return Constant(made.load().silence(1)[0], frames)
        return store

    results = {}
    with tqdm(total=len(names) * len(uids), unit="clip", disable=None) as bar:
        for name in names:
            bar.set_description(name)
            model, classes = models["untrained" if name == "untrained" else "trained"]
            model.to(device)

            def predict(batch: Batch, model=model) -> Prediction:
                return model.predict(
                    batch.images_BTCHW.to(device), batch.audio_BTA.to(device), batch.valid_BT.to(device)
                )

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
    write_reports(results, classes, out)
    history = pandas.read_csv(checkpoint.with_name("history.csv")).to_dict("records")
    plots.save(plots.training_curves(history), out / "figures" / "training.png")
    return results


def write_reports(results: Mapping[str, Evaluation], classes: Classes, out: Path) -> None:
    """Metrics as JSON (for DVC), tables as CSV, figures as PNG."""
    (out / "metrics").mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        (out / "metrics" / f"{name}.json").write_text(json.dumps(result.summary, indent=2) + "\n", encoding="utf-8")
    intervals = {name: result.intervals for name, result in results.items()}
    (out / "intervals.json").write_text(json.dumps(intervals, indent=2) + "\n", encoding="utf-8")
    _table(results, "per_clip").to_csv(out / "clips.csv", index=False)
    _table(results, "per_class").to_csv(out / "classes.csv", index=False)
    summaries = {name: result.summary for name, result in results.items()}
    pandas.DataFrame(_robustness(summaries), columns=["snr", *SCORES, "clips"]).to_csv(
        out / "robustness.csv", index=False
    )
    plots.save(plots.robustness_curve(summaries, intervals), out / "figures" / "robustness.png")
    if clean := results.get("clean"):
        plots.save(plots.picture_grid(clean.pictures, classes), out / "figures" / "pictures.png")
        plots.save(plots.class_bars(clean.per_class), out / "figures" / "classes.png")


def _table(results: Mapping[str, Evaluation], field: str) -> pandas.DataFrame:
    return pandas.concat([getattr(result, field).assign(condition=name) for name, result in results.items()])


def _robustness(summaries: Mapping[str, Mapping[str, float]]) -> Iterator[dict[str, float]]:
    for name, summary in summaries.items():
        if name.startswith("snr"):
            yield {"snr": int(name.removeprefix("snr")), **summary}


def main(settings: Settings) -> None:
    workspace, checkpoint, out = Path.cwd(), Path("models/qdformer/model.safetensors"), Path("reports")
    started = time.monotonic()
    evaluate_checkpoint(settings, workspace, checkpoint, out)
    seconds = time.monotonic() - started
    tracking.log_evaluation(
        out, settings, provenance(workspace), checkpoint, workspace / "data" / "dataset", seconds=seconds
    )


if __name__ == "__main__":
    stage_main(main)
