"""Section `train`: the training recipe, and the input format that `evaluate` shares."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from qdformer.config.base import Count, Positive, Rate, Section, Share, Weight
from qdformer.config.methods.base import BACKBONE_STAGES, MethodSettings
from qdformer.config.model import ModelSettings, parse_losses

Task = Literal["avs", "avss"]
Resize = Literal["longest", "squash", "crop"]


class Augment(Section):
    """Random augmentation of the training clips, the same for all frames of a clip.

    `flip` is the probability of a horizontal flip. The side of a random crop is a share of the frame's side between
    `crop` and 1. Brightness, contrast and saturation are multiplied by factors between 1 - `color` and 1 + `color`,
    and each color channel by a factor between 1 - `color` / 2 and 1 + `color` / 2.
    """

    flip: Share
    crop: Annotated[float, Field(gt=0, le=1)]
    color: Annotated[float, Field(ge=0, lt=1)]


class Train(Section):
    """Stage `train`: model, losses, input and optimizer.

    `condition`: the condition of the stage mix whose sound the model is trained with; one with noise needs the split
    `train` in `mix.noisy_splits`. `frames`: number of frames in a row that are drawn from each longer training clip in
    each epoch; null takes whole clips. Evaluation uses whole clips.

    `cached_views`: number of random views of each training clip, which are used in turn. The maps that a frozen
    backbone computes of them are kept on disk during the training, so that it processes each view only once. 0: a new
    view in every epoch.

    `model`: the method, by its `name`, and its settings; `loss`: the losses of this method.

    `task`: `avs` segments all sounding objects as one class, `avss` classifies them. `resize`: `longest` scales the
    longer side of a frame to `image_size` (as the paper does), `squash` scales both sides to it without keeping the
    ratio, and `crop` scales the shorter side to it and takes the central square; AVSBench's public code has the last
    two. `lr_milestones` are shares of all steps after each of which the learning rate is divided by ten.
    `precision`: `bfloat16` trains in mixed precision on devices with bfloat16 instructions and in float32 on others.

    `validate_every`: number of epochs after which the model is measured on the split `val`, and after the last one; 0:
    never. `select`: the stage keeps the model of the `last` epoch, or of the `best`, which has the highest
    dataset-level mIoU on `val`. `patience`: the training ends when so many measurements in a row have not raised that
    score; null: never. `checkpoint_minutes`: time after which a checkpoint is written within an epoch; there is one
    after each epoch in any case. `max_minutes`: an epoch that would end later, by the mean duration of those before, is
    not begun; the learning rate follows the schedule of all `epochs`, and the result depends on the machine's speed.
    """

    follows: ClassVar[dict[str, str]] = {"loss": "model"}
    task: Task
    condition: str
    model: ModelSettings
    loss: SerializeAsAny[Section]
    resize: Resize
    image_size: Annotated[int, Field(ge=32, le=1024, multiple_of=32)]
    frames: Positive | None
    epochs: Positive
    batch_size: Positive
    learning_rate: Rate
    backbone_lr_mult: Weight
    weight_decay: Weight
    warmup_steps: Count
    lr_milestones: Annotated[list[Share], Field(max_length=3)]
    max_grad_norm: Rate
    augment: Augment
    cached_views: Count
    precision: Literal["float32", "bfloat16"]
    validate_every: Count
    select: Literal["last", "best"]
    patience: Positive | None
    checkpoint_minutes: Rate
    max_minutes: Rate | None
    seed: Count

    @field_validator("loss", mode="plain")
    @classmethod
    def _parse_loss(cls, values: Any, info: ValidationInfo) -> Any:
        model = info.data.get("model")  # absent if it is not valid, which is an error of its own
        return values if model is None else parse_losses(model.name, values)

    @model_validator(mode="after")
    def _check_cached_views(self) -> Train:
        model, stages = self.model, BACKBONE_STAGES[self.model.backbone]
        if self.cached_views and (model.backbone_weights is None or model.frozen_stages < stages):
            raise ValueError(
                f"cached_views ({self.cached_views}) needs a frozen backbone: backbone_weights and frozen_stages: "
                f"{stages}; expected 0"
            )
        return self

    @model_validator(mode="after")
    def _check_losses(self) -> Train:
        model: MethodSettings = self.model
        model.check_losses(self.loss)
        return self

    @model_validator(mode="after")
    def _check_validation(self) -> Train:
        if self.select == "best" and not self.validate_every:
            raise ValueError("select: best needs a validation; expected validate_every above 0, or select: last")
        if self.patience is not None and not self.validate_every:
            raise ValueError("patience needs a validation; expected validate_every above 0, or patience: null")
        return self
