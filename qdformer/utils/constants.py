"""Constants that several rooms share."""

SAMPLE_RATE = 16_000
"""Sample rate of VGGish, and therefore of all audio in the project, in Hz."""

EMBEDDING_SIZE = 128
"""Size of VGGish's embedding of one second of audio."""

IGNORE_INDEX = 255
"""Value of the label-map pixels that losses and metrics ignore."""

SPLITS = ("train", "val", "test")
"""The splits of every data set."""
