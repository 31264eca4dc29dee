"""The segmenter: windows that cover every second once, and the predictor's result for each window."""

from __future__ import annotations

import inspect

import av
import numpy as np
import pytest
import torch

from qdformer.audio.features.extract import Embedder
from qdformer.audio.io.read import AudioError
from qdformer.audio.vggish import VGGish
from qdformer.inference import ClipPrediction, Predictor, Segmenter, SoundStream
from qdformer.inference.masks import decode_rle
from qdformer.inference.overlay import Overlay, write_overlay
from qdformer.inference.predictor import _resize_labels
from qdformer.inference.segmenter import windows
from qdformer.inference.video import Second, iter_seconds
from qdformer.inference.writer import video_codec
from tests.helpers.model import CLASSES, NAMES, PARAMS, make_model
from tests.helpers.video import HEIGHT, WIDTH, write_video


class BrightHalf:
    """In place of a predictor: the bright half of a frame is class 2, and nothing sounds in silence."""

    classes = NAMES

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []

    def predict(self, frames, waveform, sample_rate):
        self.calls.append((len(frames), len(waveform), sample_rate))
        semantic = np.where((frames[..., 0] > 20) & bool(np.abs(waveform).max() > 0.01), 2, 0).astype(np.uint8)
        probs = np.tile(np.float32([0.1, 0.75, 0, 0]), (len(frames), 1))
        return ClipPrediction(NAMES.names, semantic, (semantic > 0).astype(np.float32), probs)


@pytest.fixture
def segmenter() -> Segmenter:
    return Segmenter(BrightHalf(), clip_frames=2, hop=2)


@pytest.mark.parametrize("length", [1, 2, 5])
@pytest.mark.parametrize("hop", [1, 2, 3, 5])
def test_windows_cover_every_second_and_complete_it_once(length, hop):
    if hop > length:
        return
    for count in range(1, 14):
        complete = []
        for window, start, end in windows(range(count), length, hop):
            assert window == list(range(start, start + min(length, count)))
            assert all(start <= index < start + length for index in range(len(complete), end))
            complete += range(len(complete), end)
        assert complete == list(range(count))
    assert not list(windows([], length, hop))


class WindowNumber:
    """In place of a predictor: window k gives its k-th label to every pixel of all its seconds."""

    classes = NAMES

    def __init__(self, *labels: int) -> None:
        self.labels = iter(labels)

    def predict(self, frames, waveform, sample_rate):
        label, count = next(self.labels), len(frames)
        probs = np.full((count, CLASSES), label / 8, np.float32)
        return ClipPrediction(NAMES.names, np.full((count, 2, 2), label, np.uint8), np.ones((count, 2, 2)), probs)


def stream(count: int) -> list[Second]:
    return [Second(index, np.zeros((2, 2, 3), np.uint8), np.zeros(8, np.float32), 8) for index in range(count)]


def labels_of(count: int, hop: int, merge: str, *labels: int) -> list[int]:
    """The label of each second from windows of 5 seconds."""
    segmenter = Segmenter(WindowNumber(*labels), 5, hop, merge)
    results = list(segmenter.segment_seconds(stream(count)))
    assert [result.index for result in results] == list(range(count))
    return [int(result.semantic_HW[0, 0]) for result in results]


def test_an_overlapped_second_is_taken_from_the_window_in_which_it_is_farther_from_the_ends():
    assert labels_of(11, 3, "center", 1, 2, 3) == [1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert labels_of(7, 5, "center", 1, 2) == [1] * 5 + [2] * 2  # what was given before stays
    assert labels_of(3, 2, "center", 4) == [4] * 3


def test_overlapping_windows_vote():
    # seconds 0..8 lie in the windows from 0, 1, 2, 3 and 4 on; the last second of the video is in one window
    assert labels_of(9, 1, "vote", 1, 1, 2, 2, 2) == [1, 1, 1, 1, 2, 2, 2, 2, 2]
    assert labels_of(9, 1, "vote", 0, 0, 3, 3, 3)[3:6] == [0, 3, 3]
    segmenter = Segmenter(WindowNumber(1, 3), 5, 3, "vote")
    probs = [float(result.class_probs_C[0]) for result in segmenter.segment_seconds(stream(8))]
    assert probs == [1 / 8, 1 / 8, 1 / 8, 2 / 8, 2 / 8, 3 / 8, 3 / 8, 3 / 8]


def test_results_come_while_the_stream_goes_on():
    taken = []

    def camera():
        for second in stream(20):
            taken.append(second.index)
            yield second

    results = Segmenter(WindowNumber(*[1] * 9), 5, 2).segment_seconds(camera())
    assert next(results).index == 0 and len(taken) == 6
    assert next(results).index == 1 and len(taken) == 6
    assert next(results).index == 2 and len(taken) == 8


def test_the_sound_may_be_a_stream_of_arrays(segmenter, tmp_path):
    video = write_video(tmp_path / "a.mp4", sound=False)
    blocks = [np.full((3000, 2), 0.25)] * 11 + [np.zeros(10)]  # ends after 33010 samples, 2.06 s
    results = list(segmenter.segment(video, SoundStream(blocks, 16000)))
    assert [bool(result.objects) for result in results] == [True, True, True]
    assert [float(np.abs(result.second.sound_S).mean()) for result in results] == pytest.approx(
        [0.25, 0.25, 0.0156], abs=0.001
    )
    with pytest.raises(AudioError, match="a block of sound is int64"):
        list(segmenter.segment(video, SoundStream([np.zeros(8, int)], 16000)))
    with pytest.raises(ValueError, match="rate is 0; expected a positive integer"):
        SoundStream(blocks, 0)


def test_results_are_the_predictors_on_each_window(tmp_path):
    torch.manual_seed(0)
    predictor = Predictor(make_model().eval(), NAMES, Embedder(VGGish().eval(), "repeat"), image_size=64)
    video = write_video(tmp_path / "a.mp4")
    results = list(Segmenter(predictor, clip_frames=2, hop=2).segment(video))
    assert [result.time for result in results] == [0.0, 1.0, 2.0]
    seconds = list(iter_seconds(video))
    for window, places, own in ((seconds[:2], [0, 1], results[:2]), (seconds[1:], [1], results[2:])):
        frames = np.stack([second.frame_HWC for second in window])
        expected = predictor.predict(frames, np.concatenate([second.sound_S for second in window]), 16000)
        for place, result in zip(places, own, strict=True):
            assert np.array_equal(result.semantic_HW, expected.semantic_THW[place])
            assert np.array_equal(result.class_probs_C, expected.class_probs_TC[place])


def test_objects_have_name_score_mask_box_and_rle(segmenter, tmp_path):
    results = list(segmenter.segment(write_video(tmp_path / "a.mp4", rate=8000)))
    assert segmenter.predictor.calls == [(2, 16000, 8000), (2, 16000, 8000)]
    for result in results:
        (found,) = result.objects
        assert (found.class_id, found.name, found.score) == (2, "class 1", 0.75)
        assert found.mask_HW.shape == (HEIGHT, WIDTH) and np.array_equal(found.mask_HW, result.semantic_HW == 2)
        assert found.box == pytest.approx((WIDTH // 2, 0, WIDTH // 2, HEIGHT), abs=2)
        assert np.array_equal(decode_rle(found.rle), found.mask_HW)


def test_a_video_without_sound_and_one_with_the_sound_of_another_file(segmenter, tmp_path):
    silent, loud = write_video(tmp_path / "a.mp4", sound=False), write_video(tmp_path / "b.mp4")
    with pytest.warns(UserWarning, match="has no audio track"):
        assert not any(result.objects for result in segmenter.segment(silent))
    assert all(result.objects for result in segmenter.segment(silent, loud))


def test_settings_that_do_not_fit_are_errors():
    predictor = BrightHalf()
    for wrong, words in (
        ({"clip_frames": 0}, "clip_frames is 0; expected at least 1"),
        ({"clip_frames": 5, "hop": 0}, "hop is 0; expected 1 to clip_frames = 5"),
        ({"clip_frames": 5, "hop": 6}, "hop is 6; expected 1 to clip_frames = 5"),
        ({"merge": "mean"}, "merge is 'mean'; expected center or vote"),
        ({"frame_at": 2}, "frame_at is 2; expected 0 to 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Segmenter(predictor, **wrong)


def test_enlarged_labels_have_straight_outlines():
    labels = np.zeros((4, 4), np.int32)
    labels[:, 1:3], labels[:, 3] = 7, 2
    large = _resize_labels(labels, (40, 20))
    assert large.shape == (20, 40) and set(np.unique(large)) == {0, 2, 7}
    assert (large[:, :10] == 0).all() and (large[:, 10:30] == 7).all() and (large[:, 30:] == 2).all()


@pytest.mark.parametrize(("size", "rotation"), [((64, 48), 0), ((66, 50), 90), ((65, 49), 0)])
def test_overlay_has_the_frames_and_the_sound_of_the_video(segmenter, tmp_path, size, rotation):
    video = write_video(tmp_path / "a.mkv", 2.5, size=size, rotation=rotation, layout="stereo", rate=48000)
    write_overlay(tmp_path / "o.mp4", video, segmenter.segment(video))
    with av.open(str(tmp_path / "o.mp4")) as container:
        stream, voice = container.streams.video[0], container.streams.audio[0]
        assert stream.codec.canonical_name == {"libx264": "h264"}.get(video_codec(), "mpeg4")
        frames = list(container.decode(stream))
        assert (voice.rate, voice.channels) == (48000, 2)
    expected = size[::-1] if rotation else size
    assert (frames[0].width, frames[0].height) == tuple(side + side % 2 for side in expected)
    assert len(frames) == 25 and [frame.time for frame in frames[:3]] == pytest.approx([0, 0.1, 0.2])
    with av.open(str(tmp_path / "o.mp4")) as container:
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    assert sound.shape[1] / 48000 == pytest.approx(2.5, abs=0.1)
    assert np.sqrt(np.mean(sound[:, 9600:96000] ** 2)) == pytest.approx(0.177, abs=0.03)


def test_overlay_tints_objects_only():
    labels = np.zeros((200, 300), np.uint8)
    labels[100:180, 50:150] = 1
    labels[30:33, 250:253] = 1  # a small part has no name of its own
    overlay = Overlay(labels, {1: "dog 0.50"}, np.array([[0, 0, 0], [1.0, 0, 0]]))
    image = np.full((200, 300, 3), 100, np.uint8)
    drawn = overlay.draw(image)
    assert (image == 100).all() and (drawn[190] == 100).all()
    assert drawn[140, 100].tolist() == [177, 50, 50] and drawn[100, 100].tolist() == [255, 0, 0]
    assert (drawn[85:100, 50:90] != 100).any()  # the name above the largest part
    assert (drawn[:30] == 100).all() and (drawn[30:33, 250:253] != 100).any()


def test_names_do_not_cover_each_other():
    labels = np.zeros((200, 300), np.uint8)
    labels[100:180, 50:100], labels[100:180, 100:150] = 1, 2
    colors = np.array([[0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    both = Overlay(labels, {1: "electric-guitar 0.50", 2: "dog 0.50"}, colors)
    image = np.full((200, 300, 3), 100, np.uint8)
    first = Overlay(labels, {1: "electric-guitar 0.50"}, colors).draw(image)[:100]
    named = (first != 100).any(axis=2)
    drawn = both.draw(image)[:100]
    assert named.any() and (drawn[named] == first[named]).all()  # the first name is whole
    assert (drawn[~named] != 100).any()  # the second has its own place


def test_defaults_are_those_of_the_settings():
    for function in (Predictor.from_checkpoint, Segmenter.from_checkpoint):
        defaults = {name: value.default for name, value in inspect.signature(function).parameters.items()}
        expected = {**PARAMS.train.model_dump(), **PARAMS.features.model_dump(), "clip_frames": PARAMS.download.frames}
        for name in defaults.keys() & {"image_size", "resize", "short_clips", "center", "clip_frames"}:
            assert defaults[name] == expected[name], name


def test_five_windows_vote_by_default():
    assert [Segmenter(BrightHalf(), frames).hop for frames in (1, 3, 5, 10)] == [1, 1, 1, 2]
    assert Segmenter(BrightHalf()).merge == "vote"
