"""LVS (Chen et al., "Localizing Visual Sounds the Hard Way", CVPR 2021, arXiv 2104.02691)."""
