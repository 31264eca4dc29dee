"""Mixed precision is used where it is asked for and the device has the instructions."""

import pytest
import torch

from qdformer.utils import precision


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("asked", ["bfloat16", "float32"])
def test_products_are_in_bfloat16_only_if_asked_for_and_native(monkeypatch, native, asked):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    with precision.autocast("cpu", asked):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if native and asked == "bfloat16" else torch.float32)


def test_other_devices_are_not_taken_for_native():
    assert not precision.bfloat16_is_native("mps")
