"""VGGish: front end, network, published weights, and pretraining."""

from qdformer.audio.vggish.log_mel import log_mel_patches
from qdformer.audio.vggish.model import VGGish, load_vggish

__all__ = ["VGGish", "load_vggish", "log_mel_patches"]
