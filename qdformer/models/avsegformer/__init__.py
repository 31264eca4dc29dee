"""AVSegFormer (Gao et al., AAAI 2024, arXiv 2307.01146): sparse audio queries and a dense audio-visual mixer."""
