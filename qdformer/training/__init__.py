"""Training: a plain torch loop, its checkpoints, and its launch on Ray."""
