"""QDFormer: audio-visual segmentation with quantised semantic decomposition, and all it needs around it."""

from qdformer.utils import torchaudio_shim

torchaudio_shim.install()
