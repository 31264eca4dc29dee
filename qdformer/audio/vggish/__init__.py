"""VGGish: its front end and network, its published files, and its training here."""

from qdformer.audio.vggish.model import VGGish, load_vggish, log_mel_patches

__all__ = ["VGGish", "load_vggish", "log_mel_patches"]
