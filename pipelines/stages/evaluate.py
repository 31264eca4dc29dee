"""Stage `evaluate`: one checkpoint under every audio condition and control -> reports."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
import torch
from tqdm import tqdm

from pipelines.cli import stage_main
from pipelines.stages.features import feature_recipe
from pipelines.workspace import provenance
from qdformer import tracking
from qdformer.audio.features.store import FeatureStore
from qdformer.audio.noise.collect import read_noises
from qdformer.config.settings import Settings
from qdformer.data.dataset import AVSDataset, Batch, build_loader
from qdformer.data.manifest import Classes, read_manifest
from qdformer.evaluation.controls import Constant, OffScreen, Shuffled, noise_features
from qdformer.evaluation.evaluate import SCORES, Evaluation, Picture, evaluate, negatives
from qdformer.evaluation.tokens import AudioTokens
from qdformer.models import Prediction
from qdformer.reporting import plots
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
            return Constant(made.load().silence(1)[0], frames)
        if name == "noise":
            return noise_features(clips, read_noises(workspace / "data" / "noise"), made.load(), settings.mix.seed)
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
    write_reports(results, classes, out)
    write_tokens(tokens, dict(zip(uids, clips["classes"], strict=True)), classes, out)
    history = pandas.read_csv(checkpoint.with_name("history.csv")).to_dict("records")
    plots.save(plots.training_curves(history), out / "figures" / "training.png")
    return results


def write_reports(results: Mapping[str, Evaluation], classes: Classes, out: Path) -> None:
    """Metrics as JSON (for DVC), tables as CSV and Parquet, figures as PNG, and what the clips' pictures show as NumPy.

    The JSON of a negative holds its `fpr` and `g_miou` too. `pictures.npz` has, for each clip shown, `UID/images`
    uint8 [T, H, W, 3], `UID/truth` and `UID/prediction` uint8 [T, H, W] (class ids, truth 255 not labelled) and
    `UID/class_probs` float32 [T, C].
    """
    robust = negatives(results)
    extra = robust.set_index("condition")[["fpr", "g_miou"]].to_dict("index")
    (out / "metrics").mkdir(parents=True, exist_ok=True)
    for name, result in results.items():
        figures = result.summary | extra.get(name, {})
        (out / "metrics" / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    intervals = {name: result.intervals for name, result in results.items()}
    (out / "intervals.json").write_text(json.dumps(intervals, indent=2) + "\n", encoding="utf-8")
    per_clip = _table(results, "per_clip")
    per_clip.to_csv(out / "clips.csv", index=False)
    per_clip.to_parquet(out / "clips.parquet", index=False)
    _table(results, "per_class").to_csv(out / "classes.csv", index=False)
    _table(results, "per_source").to_csv(out / "sources.csv", index=False)
    robust.to_csv(out / "negatives.csv", index=False)
    summaries = {name: result.summary for name, result in results.items()}
    pandas.DataFrame(_robustness(summaries), columns=["snr", *SCORES, "clips"]).to_csv(
        out / "robustness.csv", index=False
    )
    figures = out / "figures"
    plots.save(plots.robustness_curve(summaries, intervals), figures / "robustness.png")
    if clean := results.get("clean"):
        names = ["background", *classes.names]
        confusion = pandas.DataFrame(clean.confusion, pandas.Index(names, name="truth"), names)
        confusion.to_csv(out / "confusion.csv")
        np.savez_compressed(out / "pictures.npz", **dict(_arrays(clean.pictures)))
        plots.save(plots.picture_grid(clean.pictures, classes), figures / "pictures.png")
        plots.save(plots.class_bars(clean.per_class), figures / "classes.png")
        plots.save(plots.confusion_matrix(clean.confusion, classes), figures / "confusion.png")


def write_tokens(tokens: AudioTokens, sounding: Mapping[str, Sequence[str]], classes: Classes, out: Path) -> None:
    """The figures of the audio tokens, none for a model that does not decompose, or that does not quantize."""
    if tokens.clips:
        plots.save(plots.token_map(tokens.clips, sounding, classes), out / "figures" / "tokens.png")
    if tokens.code_counts_CK is not None:
        plots.save(plots.codebook_use(tokens.code_counts_CK, classes), out / "figures" / "codebook.png")


def _table(results: Mapping[str, Evaluation], field: str) -> pandas.DataFrame:
    tables = [getattr(result, field).assign(condition=name) for name, result in results.items()]
    return pandas.concat(tables, ignore_index=True)


def _arrays(pictures: Iterable[Picture]) -> Iterator[tuple[str, np.ndarray]]:
    for picture in pictures:
        yield f"{picture.uid}/images", picture.images_THWC
        yield f"{picture.uid}/truth", picture.truth_THW
        yield f"{picture.uid}/prediction", picture.prediction_THW
        yield f"{picture.uid}/class_probs", picture.class_probs_TC.astype(np.float32)


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
