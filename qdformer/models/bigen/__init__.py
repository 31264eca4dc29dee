"""Bi-Gen (Hao et al., "Improving Audio-Visual Segmentation with Bidirectional Generation", AAAI 2024)."""
