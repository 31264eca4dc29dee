"""A data set of a few tiny clips for tests."""

import hashlib
from pathlib import Path

import numpy as np

from qdformer.data.layout import ClassInfo, metadata_row, write_clip, write_metadata

CLASSES = [ClassInfo("dog", True), ClassInfo("cat", False)]
FRAMES, HEIGHT, WIDTH = 3, 32, 48


def clip_arrays(seed: int = 0, silent: bool = False):
    """Frames [T, H, W, 3], labels [T, H, W] (a block of dog on the left, of cat on the right), audio [T * 16000]."""
    generator = np.random.default_rng(seed)
    frames = generator.integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    labels = np.zeros((FRAMES, HEIGHT, WIDTH), np.uint8)
    audio = np.zeros(FRAMES * 16000)
    if not silent:
        labels[:, 8:16, 4:12], labels[:, 8:16, 30:40] = 1, 2
        audio = generator.uniform(-0.5, 0.5, FRAMES * 16000)
    return frames, labels, audio


def write_small(root: Path) -> Path:
    """Write three clips with sound (two in train, one in test) and a silent one (in val)."""
    rows = []
    for seed, (uid, split) in enumerate([("a", "train"), ("b", "train"), ("c", "test"), ("quiet", "val")]):
        silent = uid == "quiet"
        write_clip(root, "v1m", uid, *clip_arrays(seed, silent))
        classes = [] if silent else ["dog", "cat"]
        rows.append(metadata_row(uid, subset="v1m", split=split, classes=classes, frames=FRAMES, unseen=uid == "c"))
    write_metadata(root, rows, CLASSES)
    return root


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
