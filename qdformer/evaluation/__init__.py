"""A model on a test set: scores of every protocol, controls, and what becomes of the audio tokens."""
