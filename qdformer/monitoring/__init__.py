"""Drift of new data, compared with the data that the champion was trained on."""
