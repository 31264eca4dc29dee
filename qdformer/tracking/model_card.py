"""The card of a trained model, in Markdown: training data, recipe, scores, limits and provenance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qdformer.config.download import PUBLISHED
from qdformer.metrics.conventions import PROTOCOLS, evaluation_setup

if TYPE_CHECKING:
    from qdformer.config.settings import Settings

Interval = Mapping[str, float | None]
_METRICS = ("miou_dataset", "miou_per_frame", "avsbench_j", "avsbench_f", "davis_jf")
"""Not all of them: the registry limits a description to 5,000 characters."""


def model_card(
    settings: Settings, provenance: Mapping[str, str], intervals: Mapping[str, Mapping[str, Interval]], source: str
) -> str:
    """The card of the checkpoint at `source`.

    `intervals` maps each condition to its metrics, each with `value`, `low` and `high` (95 %, over clips).
    """
    return "\n\n".join(
        (
            f"# {settings.train.model.title} on {settings.download.dataset}",
            _purpose(settings),
            "## Training data",
            _data(settings),
            "## Training recipe",
            _recipe(settings),
            "## Scores",
            _scores(settings, intervals),
            "## Limits",
            "\n".join(f"- {limit}" for limit in _limits(settings)),
            "## Provenance",
            _origin(provenance, source),
        )
    )


def _purpose(settings: Settings) -> str:
    output = "and the class of each" if settings.train.task == "avss" else "as one foreground mask"
    model = settings.train.model
    return (
        "Audio-visual segmentation: from the frames of a video and its sound, the model predicts the pixels of the "
        f"sounding objects, {output}. An open implementation of {model.title} ({model.paper})."
    )


def _data(settings: Settings) -> str:
    download = settings.download
    if download.dataset in PUBLISHED or download.clips is None:
        return f"AVSBench {download.dataset.upper()}, split: {download.split}."
    clips = ", ".join(f"{count:,} {split}" for split, count in download.clips.model_dump().items())
    material = (
        "real cut-outs and recordings"
        if download.dataset == "stamps"
        else "drawn shapes and synthetic tones, for tests"
    )
    return (
        f"`{download.dataset}`: scenes of {download.frames} s composed from {material}; {clips} clips, "
        f"seed {download.seed}."
    )


def _recipe(settings: Settings) -> str:
    train, model = settings.train, settings.train.model
    vggish = {"official": "the published weights", "pretrained_here": "pretrained on this data set's own sounds"}
    weights = "random weights" if model.backbone_weights is None else f"ImageNet weights ({model.backbone_weights})"
    return "\n".join(
        (
            f"- audio encoder: VGGish, {vggish[settings.pretrain.weights]}",
            f"- image encoder: {model.backbone} from {weights}, {model.frozen_stages} of its stages frozen; "
            f"{train.resize} side {train.image_size}",
            f"- {model.summary}",
            f"- AdamW, learning rate {train.learning_rate:g}, {train.epochs} epochs, batch {train.batch_size}, "
            f"{train.precision}, seed {train.seed}",
        )
    )


def _scores(settings: Settings, intervals: Mapping[str, Mapping[str, Interval]]) -> str:
    setup = ", ".join(f"{key} {value}" for key, value in evaluation_setup(settings).items())
    lines = [f"Evaluated on: {setup}. In parentheses: 95 % bootstrap interval over clips.", ""]
    columns = [key for key in _METRICS if any(key in metrics for metrics in intervals.values())]
    lines += [f"| condition | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    for condition, metrics in intervals.items():
        lines.append(f"| {condition} | {' | '.join(_interval(metrics.get(key)) for key in columns)} |")
    lines += ["", *(f"- `{key}`: {PROTOCOLS[key]}" for key in columns if key in PROTOCOLS)]
    return "\n".join(lines)


def _interval(metric: Interval | None) -> str:
    """`0.357 (0.321 to 0.390)`; a dash for an undefined metric."""
    if metric is None or metric["value"] is None:
        return "–"
    return f"{metric['value']:.3f} ({metric['low']:.3f} to {metric['high']:.3f})"


def _limits(settings: Settings) -> list[str]:
    limits = []
    if settings.download.dataset not in PUBLISHED:
        limits.append(f"The scores are on `{settings.download.dataset}`: do not compare them with AVSBench's.")
    condition = settings.train.condition
    sound = "without added noise" if condition == "clean" else f"with added noise ({condition})"
    limits.append(
        f"It was trained on clips {sound}, on images of {settings.train.image_size} pixels, and processes "
        "one frame per second."
    )
    if settings.pretrain.weights == "pretrained_here":
        limits.append("Its VGGish was not trained on AudioSet; it does not generalize to sounds unlike the training's.")
    limits.append("It predicts only the classes that it was trained on.")
    return limits


def _origin(provenance: Mapping[str, str], source: str) -> str:
    commit = provenance.get("mlflow.source.git.commit", "no Git")
    changed = ", with local changes" if provenance.get("git_dirty") == "true" else ""
    lines = [f"weights: `{source}` (download: `dvc pull`)", f"Git commit: `{commit}`{changed}"]
    for key in ("dataset_digest", "features_digest", "dvc_lock_digest", "code_digest"):
        lines.append(f"{key}: `{provenance.get(key, '')}`")
    return "\n".join(f"- {line}" for line in lines)
