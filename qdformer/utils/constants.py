"""Numbers that several rooms must agree on."""

SAMPLE_RATE = 16_000
"""Rate in Hz at which VGGish, and therefore the whole project, works."""

EMBEDDING_SIZE = 128
"""Length of VGGish's embedding of one second of sound."""

IGNORE_INDEX = 255
"""Value of the pixels of a label map that are not judged."""

SPLITS = ("train", "val", "test")
"""The splits of every data set."""
