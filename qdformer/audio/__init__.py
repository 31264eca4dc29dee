"""Audio: reading, VGGish and its front end, noise mixing, and the feature store."""
