"""Sounds in files: reading, resampling, writing, and the table of single sounds."""
