"""The base class of the sections of settings, their error, and number types."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from qdformer.utils.errors import InputError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Split = Literal["train", "val", "test"]


class SettingsError(InputError):
    """The settings are not valid; the message names every wrong key and what was expected."""


class Section(BaseModel):
    """An immutable group of settings; unknown keys and values of other types are refused.

    `follows`: fields whose keys depend on the kind of another field, by the name of that field.
    """

    follows: ClassVar[dict[str, str]] = {}
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
