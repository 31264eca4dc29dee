"""Section `train`: the recipe of a training, and what both it and `evaluate` see."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from qdformer.config.base import Count, Positive, Rate, Section, Share, Weight
from qdformer.config.model import Model

Task = Literal["avs", "avss"]
Resize = Literal["longest", "squash", "crop"]


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
    contrast and saturation are multiplied by 1 - `color` to 1 + `color`, each color channel by half as much.
    """

    flip: Share
    crop: Annotated[float, Field(gt=0, le=1)]
    color: Annotated[float, Field(ge=0, lt=1)]


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
    backbone_lr_mult: Weight
    weight_decay: Weight
    warmup_steps: Count
    lr_milestones: Annotated[list[Share], Field(max_length=3)]
    max_grad_norm: Rate
    augment: Augment
    precision: Literal["float32", "bfloat16"]
    seed: Count
