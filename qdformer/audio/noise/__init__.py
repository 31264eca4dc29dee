"""Background noise: collecting it, and mixing it into clips at a signal-to-noise ratio."""
