"""Drift: whether new data is still like the data that the champion was trained on."""
