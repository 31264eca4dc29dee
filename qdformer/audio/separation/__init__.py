"""Separation of a sound into the tracks of its sources in the time domain: Conv-TasNet (Luo and Mesgarani, 2019)."""
