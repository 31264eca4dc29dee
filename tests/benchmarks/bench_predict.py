"""`make predict`: memory, time to the first result and speed, with the default model on 720p videos.

The videos show moving stripes with a tone, at 25 frames per second; each is segmented with all its
files in a process of its own. Memory is the peak of that process (VmHWM). `first result` is the time from the start of
the process; CPU times are those of the process, with all threads, which other work on the machine changes less.
`window / forward` compares the time of a window (resizing, VGGish, model, restored masks) with the bare
forward passes of VGGish and model in the same process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rich.console import Console
from rich.table import Table

LENGTHS = (60, 600)
WIDTH, HEIGHT, FRAME_RATE, RATE = 1280, 720, 25, 16000
MEMORY_GOAL, WINDOW_GOAL, FIRST_GOAL, SPEED_GOAL = 1.1, 1.3, 10.0, 1.0


def run() -> None:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        results = []
        for seconds in LENGTHS:
            video = write_stripes(Path(folder, f"{seconds}.mp4"), seconds)
            command = [sys.executable, __file__, str(video), folder, str(time.time())]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr[-2000:])
            results.append(json.loads(done.stdout.splitlines()[-1]))
    table = Table("720p video", *(f"{seconds} s" for seconds in LENGTHS), "goal")
    for column in table.columns[1:]:
        column.justify = "right"
    rows = [
        ("peak memory, MiB", "memory", "{:.0f}", f"x {MEMORY_GOAL} of the shorter"),
        ("first result after, s", "first", "{:.1f}", f"<= {FIRST_GOAL:.0f}"),
        ("CPU time until the first result, s", "first_cpu", "{:.1f}", ""),
        ("seconds of video per second", "speed", "{:.2f}", f">= {SPEED_GOAL:.0f}"),
        ("CPU time per second of video, s", "cpu", "{:.2f}", ""),
        ("window / bare forward passes", "window", "{:.2f}", f"<= {WINDOW_GOAL}"),
    ]
    for title, key, form, goal in rows:
        table.add_row(title, *(form.format(result[key]) for result in results), goal)
    Console().print(table)
    print(f"memory of the longer / shorter video: {results[-1]['memory'] / results[0]['memory']:.3f}")


def write_stripes(path: Path, seconds: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        voice = container.add_stream("aac", rate=RATE, layout="mono")
        tone = (0.2 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)[None]
        base = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        base[:, ::64] = base[:, 1::64] = base[:, 2::64] = 200
        for second in range(seconds):
            frame = av.VideoFrame.from_ndarray(np.roll(base, 3 * second, axis=1), format="rgb24")
            for index in range(FRAME_RATE):
                frame.pts, frame.time_base = second * FRAME_RATE + index, Fraction(1, FRAME_RATE)
                container.mux(stream.encode(frame))
            sound = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = RATE, second * RATE, Fraction(1, RATE)
            container.mux(voice.encode(sound))
        container.mux(stream.encode(None))
        container.mux(voice.encode(None))
    return path


def segment(video: Path, out: Path, started: float) -> dict[str, float]:
    """Segment one video in this process, which `started` then (`time.time`)."""
    from pipelines.environment import PROJECT
    from pipelines.predict import load_segmenter, predict
    from pipelines.settings import preset_settings

    segmenter = load_segmenter(preset_settings(), PROJECT)
    times: list[tuple[float, float]] = []
    predict(segmenter, video, out, on_second=lambda _: times.append((time.time(), time.process_time())))
    times.append((time.time(), time.process_time()))
    (first, first_cpu), (ended, ended_cpu) = times[0], times[-1]
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {
        "memory": int(line.split()[1]) / 1024,
        "first": first - started,
        "first_cpu": first_cpu,
        "speed": (len(times) - 2) / (ended - first),
        "cpu": (ended_cpu - first_cpu) / (len(times) - 2),
        "window": window_ratio(segmenter),
    }


def window_ratio(segmenter) -> float:
    """Time of a window relative to the bare forward passes of VGGish and model, medians of alternating runs."""
    predictor, generator = segmenter.predictor, np.random.default_rng(0)
    frames = generator.integers(0, 255, (segmenter.clip_frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    sound = generator.normal(0, 0.1, segmenter.clip_frames * RATE).astype(np.float32)
    batch = predictor.make_batch(frames, sound, RATE)
    patches = predictor.embedder._patches(sound)[: segmenter.clip_frames]
    whole, bare = [], []
    for _ in range(9):
        started = time.perf_counter()
        predictor.predict(frames, sound, RATE)
        middle = time.perf_counter()
        predictor.embedder._run(patches)
        predictor.model.predict(batch.images_BTCHW, batch.audio_BTA)
        whole.append(middle - started)
        bare.append(time.perf_counter() - middle)
    return float(np.median(whole) / np.median(bare))


if __name__ == "__main__":
    video, folder, started = sys.argv[1:]
    print(json.dumps(segment(Path(video), Path(folder, f"out-{Path(video).stem}"), float(started))))
