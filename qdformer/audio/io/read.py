"""Read an audio file, or the audio track of a video, as float32 samples."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np

from qdformer.utils.constants import SAMPLE_RATE
from qdformer.utils.errors import InputError

LOG_MEL_SUFFIX = ".pkl"
"""Suffix of AVSBench's spectrograms, which can replace an audio file where only features are needed."""
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3"})
CONTAINER_SUFFIXES = frozenset({".mp4", ".m4a", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".aac", ".3gp", ".ts"})
"""Containers that may hold video; they are read with PyAV, all other files with soundfile first."""
_UNKNOWN_FORMAT = 1  # libsndfile's SF_ERR_UNRECOGNISED_FORMAT
_UNKNOWN_LENGTH = 0xFFFFFFFF  # written by programs that stream a wav file and cannot seek back to its header


class AudioError(InputError):
    """Audio is not usable; the message names the file and the problem."""


def read_audio(path: str | Path, sample_rate: int | None = SAMPLE_RATE, mono: bool = True) -> np.ndarray:
    """Read an audio file or the first audio track of a video.

    wav, flac, ogg and mp3 are read with soundfile, video containers with PyAV. The content of the file decides, not
    its suffix.

    Args:
        path: the file.
        sample_rate: rate in Hz to resample to; None keeps the rate of the file.
        mono: average the channels.

    Returns:
        float32 samples, nominally in -1..1: [samples], or [samples, channels] if `mono` is false.

    Raises:
        AudioError: the file is missing, unreadable, empty, truncated, not audio, or holds NaN or infinite samples.
    """
    samples, rate = decode_audio(path)
    if not np.isfinite(samples).all():
        bad = int((~np.isfinite(samples)).any(axis=1).argmax())
        raise AudioError(f"{path}: sample {bad} is NaN or infinite")
    if mono:
        samples = samples.mean(axis=1)
    if sample_rate is not None and rate != sample_rate:
        from qdformer.audio.io.resample import resample  # imports torch, which 16 kHz files do not need

        samples = resample(samples, rate, sample_rate)
    return np.ascontiguousarray(samples, dtype=np.float32)


def decode_audio(path: str | Path) -> tuple[np.ndarray, int]:
    """The unchanged samples of a file, float32 [samples, channels], and their rate in Hz; NaN is not checked.

    Raises `AudioError` for a file that is missing, unreadable, empty, truncated or not audio.
    """
    path = Path(path)
    if path.suffix == LOG_MEL_SUFFIX:
        raise AudioError(f"{path}: a spectrogram; noise and listening need the audio itself (audio_wav)")
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    try:
        samples, rate = _decode(path)
    except OSError as error:
        raise AudioError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not len(samples):
        raise AudioError(f"{path}: holds no samples")
    return samples, rate


def _decode(path: Path) -> tuple[np.ndarray, int]:
    """Samples [samples, channels] and their rate, from the reader that fits the suffix or otherwise the other one."""
    if path.suffix.lower() in CONTAINER_SUFFIXES:
        return _decode_container(path)  # FFmpeg looks at the content and reads soundfile's formats as well
    import soundfile

    try:
        return _decode_sound(path)
    except soundfile.LibsndfileError as error:
        if error.code == _UNKNOWN_FORMAT:
            with contextlib.suppress(AudioError):
                return _decode_container(path)
        raise AudioError(f"{path}: cannot be read as audio: {error}") from None


def _decode_sound(path: Path) -> tuple[np.ndarray, int]:
    import soundfile

    _check_wav_length(path)
    with soundfile.SoundFile(path) as file:
        expected, rate = file.frames, file.samplerate
        samples = file.read(dtype="float32", always_2d=True)
    if len(samples) < expected:
        raise AudioError(f"{path}: truncated: {len(samples)} of {expected} samples can be read")
    return samples, rate


def _check_wav_length(path: Path) -> None:
    """Compare the header with the file size, because soundfile reads a truncated wav file without an error."""
    with path.open("rb") as file:
        header = file.read(12)
    if header[:4] != b"RIFF" or header[8:12] != b"WAVE":
        return
    expected = int.from_bytes(header[4:8], "little")
    size = path.stat().st_size
    if expected != _UNKNOWN_LENGTH and size < expected + 8:
        raise AudioError(f"{path}: truncated: {size} of {expected + 8} bytes")


def _decode_container(path: Path) -> tuple[np.ndarray, int]:
    import av

    from qdformer.audio.io.container import open_container

    with open_container(path, "audio", AudioError) as container:
        if not container.streams.audio:
            raise AudioError(f"{path}: has no audio track")
        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="fltp")  # same layout and rate, planar float32
        try:
            frames = [part.to_ndarray() for frame in container.decode(stream) for part in to_float.resample(frame)]
        except av.FFmpegError as error:
            raise AudioError(f"{path}: cannot be read as audio: {error}") from None
        rate = stream.rate
    if not frames:
        raise AudioError(f"{path}: holds no samples")
    return np.concatenate(frames, axis=1).T, rate
