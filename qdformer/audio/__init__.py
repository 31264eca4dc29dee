"""Audio: reading and writing, VGGish and its front end, noise mixing, and feature extraction."""
