"""The card of a trained model, in Markdown: what it was trained on, with what, how good it is and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping

from qdformer.config.download import PUBLISHED
from qdformer.config.settings import Settings
from qdformer.metrics.conventions import PROTOCOLS, evaluation_setup

Interval = Mapping[str, float | None]
_FIGURES = (
    "miou_dataset",
    "miou_per_frame",
    "avsbench_j",
    "avsbench_f",
    "davis_jf",
)  # the registry keeps 5,000 letters


def model_card(
    settings: Settings, provenance: Mapping[str, str], intervals: Mapping[str, Mapping[str, Interval]], source: str
) -> str:
    """The card of the checkpoint at `source`.

    `intervals` maps each condition to its figures, each with `value`, `low` and `high` (95 %, over clips).
    """
    return "\n\n".join(
        (
            f"# QDFormer on {settings.download.dataset}",
            _purpose(settings),
            "## Trained on",
            _data(settings),
            "## Trained with",
            _recipe(settings),
            "## Scores",
            _scores(settings, intervals),
            "## Limits",
            "\n".join(f"- {limit}" for limit in _limits(settings)),
            "## Where it comes from",
            _origin(provenance, source),
        )
    )


def _purpose(settings: Settings) -> str:
    named = "and names it" if settings.train.task == "avss" else "all of it as one object"
    return (
        "Audio-visual segmentation: from the frames of a video and its sound it marks the pixels of what is sounding, "
        f"{named}. An open implementation of QDFormer (Li et al., CVPR 2024)."
    )


def _data(settings: Settings) -> str:
    download = settings.download
    if download.dataset in PUBLISHED:
        return f"AVSBench {download.dataset.upper()}, split: {download.split}."
    clips = ", ".join(f"{count:,} {split}" for split, count in download.clips.model_dump().items())
    composed = (
        "real cut-outs and recordings"
        if download.dataset == "stamps"
        else "drawn shapes and synthetic tones, for tests"
    )
    return (
        f"`{download.dataset}`: scenes of {download.frames} s composed from {composed}; {clips} clips, "
        f"seed {download.seed}."
    )


def _recipe(settings: Settings) -> str:
    train, model = settings.train, settings.train.model
    parts = [part for part in ("decompose", "quantize", "recombine", "calibrate") if getattr(model, part)]
    vggish = {"official": "the published weights", "pretrained_here": "pretrained on this data set's own sounds"}
    start = "random weights" if model.backbone_weights is None else f"ImageNet weights ({model.backbone_weights})"
    return "\n".join(
        (
            f"- sound: VGGish, {vggish[settings.pretrain.weights]}",
            f"- picture: {model.backbone} from {start}, {model.frozen_stages} of its stages frozen; "
            f"{train.resize} side {train.image_size}",
            f"- QDFormer: width {model.hidden_dim}, {model.encoder_layers} + {model.decoder_layers} layers, "
            f"{model.encoder} encoder; {', '.join(parts) or 'none'} of its four parts on",
            f"- AdamW, learning rate {train.learning_rate:g}, {train.epochs} epochs, batch {train.batch_size}, "
            f"{train.precision}, seed {train.seed}",
        )
    )


def _scores(settings: Settings, intervals: Mapping[str, Mapping[str, Interval]]) -> str:
    told = ", ".join(f"{key} {value}" for key, value in evaluation_setup(settings).items())
    lines = [f"Measured on: {told}. In brackets: 95 % bootstrap interval over clips.", ""]
    figures = [key for key in _FIGURES if any(key in of for of in intervals.values())]
    lines += [f"| condition | {' | '.join(figures)} |", f"| --- |{' ---: |' * len(figures)}"]
    for condition, of in intervals.items():
        lines.append(f"| {condition} | {' | '.join(_interval(of.get(key)) for key in figures)} |")
    lines += ["", *(f"- `{key}`: {PROTOCOLS[key]}" for key in figures if key in PROTOCOLS)]
    return "\n".join(lines)


def _interval(figure: Interval | None) -> str:
    """`0.357 (0.321 to 0.390)`; a dash where there is no figure."""
    if figure is None or figure["value"] is None:
        return "–"
    return f"{figure['value']:.3f} ({figure['low']:.3f} to {figure['high']:.3f})"


def _limits(settings: Settings) -> list[str]:
    limits = []
    if settings.download.dataset not in PUBLISHED:
        limits.append(f"The figures are about `{settings.download.dataset}`: do not compare them with AVSBench's.")
    limits.append(
        f"It was trained on clips without added noise, with pictures of {settings.train.image_size} pixels, and looks "
        "at one frame a second."
    )
    if settings.pretrain.weights == "pretrained_here":
        limits.append("Its VGGish never heard AudioSet; sounds unlike the training's mean little to it.")
    limits.append("It knows the classes it was trained on, and no others.")
    return limits


def _origin(provenance: Mapping[str, str], source: str) -> str:
    commit = provenance.get("mlflow.source.git.commit", "no Git")
    changed = ", with local changes" if provenance.get("git_dirty") == "true" else ""
    lines = [f"weights: `{source}` (`dvc pull` brings them)", f"Git commit: `{commit}`{changed}"]
    for key in ("dataset_digest", "features_digest", "dvc_lock_digest", "code_digest"):
        lines.append(f"{key}: `{provenance.get(key, '')}`")
    return "\n".join(f"- {line}" for line in lines)
