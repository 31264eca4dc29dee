"""QDFormer: audio-visual segmentation with quantized semantic decomposition, as a library."""

from qdformer.utils import torchaudio_shim

torchaudio_shim.install()
