"""The settings of each method: one module per method, listed in `qdformer.config.model`."""
