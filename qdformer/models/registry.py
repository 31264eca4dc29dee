"""The methods by name (`train.model.name`). `qdformer.models.common.method.Method` describes how to add one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdformer.models.avsegformer.model import AVSegFormer
from qdformer.models.bigen.model import BiGen
from qdformer.models.catr.model import CATR
from qdformer.models.lvs.model import LVS
from qdformer.models.mssl.model import MSSL
from qdformer.models.qdformer.model import QDFormer
from qdformer.models.tpavi.model import TPAVI

if TYPE_CHECKING:
    from qdformer.config.model import ModelSettings
    from qdformer.models.common.method import Method

METHODS: dict[str, Any] = {
    "qdformer": QDFormer,
    "tpavi": TPAVI,
    "avsegformer": AVSegFormer,
    "catr": CATR,
    "bigen": BiGen,
    "lvs": LVS,
    "mssl": MSSL,
}


def build_model(settings: ModelSettings, num_classes: int) -> Method:
    """The model that the settings describe, in training mode, for classes 1..`num_classes`.

    Raises `BackboneError` if the backbone's weights are not available or do not fit.
    """
    return METHODS[settings.name](settings, num_classes)
