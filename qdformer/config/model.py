"""Sections `train.model` and `train.loss`: those of the method that `train.model.name` names."""

from __future__ import annotations

import typing
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from qdformer.config.base import Section
from qdformer.config.methods.avsegformer import AVSegFormerSettings
from qdformer.config.methods.base import MethodSettings
from qdformer.config.methods.bigen import BiGenSettings
from qdformer.config.methods.catr import CATRSettings
from qdformer.config.methods.lvs import LVSSettings
from qdformer.config.methods.mssl import MSSLSettings
from qdformer.config.methods.qdformer import QDFormerSettings
from qdformer.config.methods.tpavi import TPAVISettings

ModelSettings = Annotated[
    AVSegFormerSettings
    | BiGenSettings
    | CATRSettings
    | LVSSettings
    | MSSLSettings
    | QDFormerSettings
    | TPAVISettings,  # add the settings of a new method here
    Field(discriminator="name"),
]
"""The settings of any method."""

SETTINGS: dict[str, type[MethodSettings]] = {
    section.model_fields["name"].annotation.__args__[0]: section  # type: ignore[union-attr]
    for section in typing.get_args(typing.get_args(ModelSettings)[0])
}
"""The settings of each method by its name."""


def parse_model_settings(values: dict[str, Any]) -> ModelSettings:
    """Validate the settings of a model, as a checkpoint holds them; raises pydantic's `ValidationError`."""
    return TypeAdapter(ModelSettings).validate_python(values)


def parse_losses(method: str, values: Any) -> Section:
    """Validate the losses of a method; raises pydantic's `ValidationError`."""
    return SETTINGS[method].losses.model_validate(values)
