"""TPAVI, the method of AVSBench (Zhou et al., "Audio-Visual Segmentation", ECCV 2022, arXiv 2207.08351)."""
