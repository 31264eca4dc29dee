"""Pictures and sounds as parts of a page, small enough to lie in it.

Shapes: T frames, H W pixels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from qdformer.audio.io.read import read_audio
from qdformer.reporting.html import data_uri
from qdformer.utils.constants import SAMPLE_RATE


def film(frames_THWC: np.ndarray, quality: int = 78) -> str:
    """The frames (uint8), one below another, as a WebP."""
    height, width = frames_THWC.shape[1:3]
    return _webp(Image.fromarray(frames_THWC.reshape(-1, width, 3)), quality)


def figure(path: Path, widest: int = 1500) -> str:
    """A PNG of the reports as a WebP of at most `widest` pixels."""
    with Image.open(path) as image:
        image = image.convert("RGB")
        if image.width > widest:
            image = image.resize((widest, round(image.height * widest / image.width)), Image.Resampling.LANCZOS)
        return _webp(image, 82)


def sound(path: Path) -> str:
    """A clip's sound as Opus in Ogg, mono, which Chromium and Firefox play. Raises `AudioError`."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, read_audio(path), SAMPLE_RATE, format="OGG", subtype="OPUS")
    return data_uri(buffer.getvalue(), "audio/ogg")


def _webp(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=6)
    return data_uri(buffer.getvalue(), "image/webp")
