"""Pictures and sounds as data URIs, compressed to be embedded in a page.

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


def film_strip(frames_THWC: np.ndarray, quality: int = 78) -> str:
    """The frames (uint8), one below another, as one WebP image."""
    height, width = frames_THWC.shape[1:3]
    return _webp(Image.fromarray(frames_THWC.reshape(-1, width, 3)), quality)


def image_uri(path: Path, max_width: int = 1500) -> str:
    """An image file as a WebP image of at most `max_width` pixels in width."""
    with Image.open(path) as file:
        image = file.convert("RGB")
    if image.width > max_width:
        image = image.resize((max_width, round(image.height * max_width / image.width)), Image.Resampling.LANCZOS)
    return _webp(image, 82)


def sound_uri(path: Path) -> str:
    """A sound file as mono Opus in Ogg, which Chromium and Firefox play. Raises `AudioError` if it cannot be read."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, read_audio(path), SAMPLE_RATE, format="OGG", subtype="OPUS")
    return data_uri(buffer.getvalue(), "audio/ogg")


def _webp(image: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=6)
    return data_uri(buffer.getvalue(), "image/webp")
