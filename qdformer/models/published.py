"""Checkpoints that the authors of methods have published: the loader of each method by its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qdformer.models.avsegformer.published import load_published as load_avsegformer
from qdformer.models.backbones import BackboneError
from qdformer.models.tpavi.published import load_published as load_tpavi

if TYPE_CHECKING:
    from qdformer.config.methods.base import MethodSettings
    from qdformer.models.common.method import Method

LOADERS: dict[str, Callable[[str, Any, int], Method]] = {"avsegformer": load_avsegformer, "tpavi": load_tpavi}


def load_published(path: str, settings: MethodSettings, num_classes: int) -> Method:
    """The model with the weights of the file `path`, written by the public code of the method `settings.name`.

    Raises `BackboneError` if the method has no public checkpoints, or the file does not fit the settings.
    """
    if settings.name not in LOADERS:
        raise BackboneError(
            f"{path}: checkpoints of the public code of {settings.name} cannot be read; those of these methods can: "
            f"{', '.join(LOADERS)}"
        )
    return LOADERS[settings.name](path, settings, num_classes)
