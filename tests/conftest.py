"""One thread a test: tensors here are so small that more threads only wait for one another."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
