"""The published separator: torchaudio's bundle CONVTASNET_BASE_LIBRI2MIX, from a file that the user names."""

from __future__ import annotations

import re
from pathlib import Path

from qdformer.audio.separation.model import Separator, SeparatorConfig
from qdformer.audio.vggish.model import WeightsError, read_state

SAMPLE_RATE = 8000
STACKS, ACTIVATION = 3, "relu"
"""Of `torchaudio.models.conv_tasnet_base`; the shapes of the tensors do not tell them."""
_BLOCK = re.compile(r"mask_generator\.conv_layers\.(\d+)\.conv_layers\.0\.weight")


def load_published(path: Path) -> Separator:
    """Read the state dict `conv_tasnet_base_libri2mix.pt`, without running code in it; sizes are those of its tensors.

    The bundle was trained by SI-SDR, so its tracks are rescaled. Raises `WeightsError` if the file holds other tensors.
    """
    state = read_state(path)
    try:
        features, _, kernel = state["encoder.weight"].shape
        hidden, channels, _ = state["mask_generator.conv_layers.0.conv_layers.0.weight"].shape
        blocks = sum(bool(_BLOCK.fullmatch(name)) for name in state)
        network = {
            "num_sources": len(state["mask_generator.output_conv.weight"]) // features,
            "enc_kernel_size": kernel,
            "enc_num_feats": features,
            "msk_kernel_size": state["mask_generator.conv_layers.0.conv_layers.3.weight"].shape[2],
            "msk_num_feats": channels,
            "msk_num_hidden_feats": hidden,
            "msk_num_layers": blocks // STACKS,
            "msk_num_stacks": STACKS,
            "msk_activate": ACTIVATION,
        }
        separator = Separator(SeparatorConfig(network, SAMPLE_RATE, rescale=True))
        separator.network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: expected the state dict of torchaudio.models.conv_tasnet_base; {str(error).partition(chr(10))[0]}"
        ) from None
    return separator.eval().requires_grad_(False)
