"""Background noise: where it comes from, and mixing it under clips at a signal-to-noise ratio."""
