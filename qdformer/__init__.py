"""QDFormer: audio-visual segmentation with quantised semantic decomposition, and all it needs around it."""

from qdformer import _torchaudio

_torchaudio.install()
