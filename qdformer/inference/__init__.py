"""A trained model on videos that are in no data set."""
