"""Audio files: reading, resampling, writing, levels, and the table of single sounds."""
