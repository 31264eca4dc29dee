"""Section `train`: the training recipe, and the input format that `evaluate` shares."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qdformer.config.base import Count, Positive, Rate, Section, Share, Weight
from qdformer.config.model import BACKBONE_STAGES, ModelSettings

Task = Literal["avs", "avss"]
Resize = Literal["longest", "squash", "crop"]


class Loss(Section):
    """Weights of the losses and of the matching costs (Eq. 8-10).

    `quantize` is lambda_quant and `commitment` is lambda_com; the paper gives neither. `quantize_reduction`: Eq. 9 is a
    `sum` of squared norms over the tokens and frames of a clip. `mean` divides its terms for the clip's tokens by the
    number N D of their values, and the term for the frames' tokens by N T D, as the loss functions of VQ-VAE's
    implementations do. The same weight then fits every number of tokens, frames and channels.

    `token_cls` and `token_match` are not in the paper, where both are 0. `token_cls` is the weight of a class loss of
    the tokens VQ(g_i) and VQ(l_i,t), computed by the class head of the mask decoder (as Mask2Former, Cheng et al.,
    2022, supervises its queries before the first decoder layer; TAViS, Luo et al., 2025, classifies audio tokens after
    Hungarian matching). `token_match` is the weight of the tokens' class cost in the matching of Eq. 10: if it exceeds
    the other costs, the tokens decide which query segments which source.
    """

    cls: Weight
    token_cls: Weight
    token_match: Weight
    no_object: Weight
    l1: Weight
    giou: Weight
    mask: Weight
    dice: Weight
    quantize: Weight
    quantize_reduction: Literal["sum", "mean"]
    commitment: Weight
    auxiliary: bool


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

    `task`: `avs` segments all sounding objects as one class, `avss` classifies them. `resize`: `longest` scales the
    longer side of a frame to `image_size` (as the paper does), `squash` scales both sides to it without keeping the
    ratio, and `crop` scales the shorter side to it and takes the central square; AVSBench's public code has the last
    two. `lr_milestones` are shares of all steps after each of which the learning rate is divided by ten.
    `precision`: `bfloat16` trains in mixed precision on devices with bfloat16 instructions and in float32 on others.
    """

    task: Task
    condition: str
    model: ModelSettings
    loss: Loss
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
    seed: Count

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
    def _every_part_is_trained(self) -> Train:
        model = self.model
        if model.calibrate and not (model.quantize or model.recombine or self.loss.token_cls):
            raise ValueError(
                "model.calibrate: true without model.quantize and model.recombine leaves the tokens of the clip "
                "without a loss; expected one of the two, loss.token_cls above 0, or model.calibrate: false"
            )
        return self
