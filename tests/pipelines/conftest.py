"""A copy of the project with the same flows and settings, and stages that only write small files."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.environment import dvc_command
from tests.helpers import PROJECT

SCORES = """
import json

import numpy as np

def write_scores(out, score):
    (out / "metrics").mkdir(parents=True, exist_ok=True)
    for name in ("clean", "snr0", "silence"):
        values = {"miou_dataset": score, "davis_jf": score / 2, "clips": 3}
        (out / "metrics" / f"{name}.json").write_text(json.dumps(values))
    interval = {"value": score, "low": score - 0.02, "high": score + 0.02}
    (out / "intervals.json").write_text(json.dumps({"clean": {"miou_dataset": interval}}))
    spread = np.random.default_rng(0).normal(0, 0.05, 101)
    spread[0] = 0
    arrays = {f"{name}/miou_dataset": score + spread for name in ("clean", "snr0")}
    np.savez(out / "resamples.npz", **arrays, **{"silence/predicted_area": np.full(101, 0.001)})
    (out / "classes.csv").write_text(f"name,iou,condition\\ndog,{score},clean\\n")
    (out / "clips.csv").write_text("uid,classes,condition\\n" + "".join(f"{i},dog,clean\\n" for i in range(9)))
"""

STEPS = """
import json, sys, time, yaml
from pathlib import Path
import numpy as np
import soundfile
from PIL import Image
from pipelines.scores import write_scores

def draw_frames(root, names):
    for seed, name in enumerate(names):
        folder = root / "v1s" / name / "frames"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
        for index in range(3):
            Image.fromarray(pixels).save(folder / f"{index}.jpg")
        soundfile.write(folder.parent / "audio.wav", np.random.default_rng(seed).uniform(-0.1, 0.1, 48000), 16000)

step, params = sys.argv[1], yaml.safe_load(open("params.yaml"))
print("step", step, flush=True)
if Path(f"fail-{step}").exists():
    Path(f"tried-{step}").open("a").write("x")
    print(f"error: {step} was told to fail", file=sys.stderr)
    sys.exit(int(Path(f"fail-{step}").read_text()))
if Path(f"slow-{step}").exists():
    Path("slow-started").touch()
    end = time.monotonic() + float(Path(f"slow-{step}").read_text() or 120)
    while Path(f"slow-{step}").exists() and time.monotonic() < end:
        time.sleep(0.1)
if step == "download":
    from qdformer.data.accepted import join_accepted
    Path("data/dataset").mkdir(parents=True, exist_ok=True)
    Path("data/dataset/seed").write_text(str(params["download"]["seed"]))
    names = [*(f"train-{index}" for index in range(20)), "val", "test"]
    rows = [f",{name},0,0,dog,{name.split('-')[0]},v1s,3,0\\n" for name in names]
    columns = "vid,uid,s_min,s_sec,a_obj,split,label,frames,unseen\\n"
    Path("data/dataset/metadata.csv").write_text(columns + "".join(rows))
    Path("data/dataset/classes.csv").write_text("id,name,unseen\\n1,dog,0\\n")
    Path("data/dataset/label2idx.json").write_text(json.dumps({"background": 0, "dog": 1}))
    draw_frames(Path("data/dataset"), names)
    join_accepted(Path("data/dataset"), Path("accepted"))
if step == "pretrain":
    Path("models/vggish").mkdir(parents=True, exist_ok=True)
    Path("models/vggish/vggish.safetensors").write_text(str(params["pretrain"]["seed"]))
if step == "features":
    import zlib
    from qdformer.audio.features.store import FeatureInfo, write_features
    from qdformer.utils.digests import file_sha256
    uids = [line.split(",")[1] for line in Path("data/dataset/metadata.csv").read_text().splitlines()[1:]]
    info = FeatureInfo("clean", file_sha256("models/vggish/vggish.safetensors"), "repeat")
    def embed(uid):
        values = np.random.default_rng(zlib.crc32(uid.encode())).exponential(size=(3, 128))
        return values * (5 if "loud" in uid else 1)
    write_features(Path("data/features/clean.h5"), [(uid, embed(uid)) for uid in uids], info)
if step == "train":
    out = Path("models/qdformer")
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.safetensors").write_text(json.dumps(params["train"]))
    (out / "history.csv").write_text("epoch,total\\n1,2.0\\n2,1.0\\n")
if step == "evaluate":
    write_scores(Path("reports"), 1000 * params["train"]["learning_rate"])
"""

TRAIN = """
import time
from pathlib import Path

def train(settings, workspace, out, run_id):
    root = workspace.parents[3]
    (root / "started").open("a").write(f"{workspace.parent.name}-{settings.train.seed} ")
    if settings.train.model.recombine and (root / "fail-row").exists():
        raise OSError("told to fail")
    if (root / "slow-cell").exists():
        time.sleep(120)
    (root / "trained").open("a").write(f"{workspace.parent.name}-{settings.train.seed} ")
    out.mkdir(parents=True)
    (out / "model.safetensors").write_text(settings.model_dump_json())
    (out / "history.csv").write_text("epoch,total\\n1,2.0\\n")
"""

EVALUATE = """
import json

import numpy as np

from pipelines.scores import write_scores
from qdformer.evaluation.result import SCORES

def evaluate_checkpoint(settings, workspace, checkpoint, out, names=None):
    if names is None:
        (workspace / "evaluated").touch()
        return write_scores(out, 1000 * json.loads(checkpoint.read_text())["learning_rate"])
    assert list(names) == settings.sweep.conditions
    model, seed = settings.train.model, settings.train.seed
    score = 0.1 * (1 + model.decompose + model.quantize + model.recombine + model.calibrate) + 0.02 * seed
    (out / "metrics").mkdir(parents=True)
    (out / "metrics" / "clean.json").write_text(json.dumps(dict.fromkeys(SCORES, score)))
    (out / "clips.csv").write_text("uid,condition\\ntest-0,clean\\ntest-1,clean\\n")
    clips = np.concatenate([[0.0], np.random.default_rng(0).normal(0, 0.01, 50)])
    np.savez(out / "resamples.npz", **{f"{name}/{key}": score + clips for name in names for key in SCORES})
"""

SESSION = """
import contextlib
from dataclasses import dataclass

@dataclass(frozen=True)
class Cluster:
    address: str
    cpus: int
    gpus: int
    auth_mode: str

@contextlib.contextmanager
def shared_ray_session():
    print("a Ray session", flush=True)
    yield Cluster("127.0.0.1:1", 4, 0, "token")
"""

PIPELINE = """
stages:
  download:
    cmd: python -m pipelines.steps download
    params: [download]
    deps: [accepted]
    outs: [data/dataset]
  pretrain:
    cmd: python -m pipelines.steps pretrain
    params: [pretrain]
    outs: [models/vggish]
  features:
    foreach: [clean]
    do:
      cmd: python -m pipelines.steps features
      deps: [data/dataset, models/vggish]
      outs: ["data/features/${item}.h5"]
  train:
    cmd: python -m pipelines.steps train
    params: [train]
    deps: [data/dataset]
    outs: [models/qdformer]
  evaluate:
    cmd: python -m pipelines.steps evaluate
    params: [evaluate]
    deps: [models/qdformer]
    outs: [reports/intervals.json, reports/resamples.npz, reports/classes.csv, reports/clips.csv]
    metrics:
      - reports/metrics: {cache: false}
"""


class Project:
    """The small project, with helpers to run its commands."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `python arguments...` in the project and wait for it."""
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=480,
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start `python arguments...` in its own process group, as a terminal does."""
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=self.root,
            env=self.environment(**environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # a test in the background of a shell inherits an ignored SIGINT; a user's command does not
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of the test without the variables of Prefect and MLflow."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_"))}
        return {**kept, "PYTHONPATH": str(self.root), **extra}

    def dvc_repro(self, folder: Path) -> str:
        """Run `dvc repro` in a workspace and return its output; it must succeed."""
        environment = self.environment(PATH=f"{sys.prefix}/bin:/usr/bin:/bin")
        done = subprocess.run([dvc_command(), "repro"], cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace a text that occurs once in a file."""
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} in {name}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def set_score(self, score: float) -> None:
        """Set the score of the next training; `train` and the stages after it become stale."""
        path = self.root / "params.yaml"
        text = path.read_text(encoding="utf-8")
        path.write_text(
            re.sub(r"(?m)^  learning_rate: .*$", f"  learning_rate: {score / 1000}", text), encoding="utf-8"
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A fresh small project."""
    return make_project(tmp_path / "project")


def make_project(root: Path) -> Project:
    """Write a small project to the new folder `root`."""
    root.mkdir()
    skip = shutil.ignore_patterns("__pycache__")
    for folder in ("pipelines", "qdformer"):
        shutil.copytree(PROJECT / folder, root / folder, ignore=skip)
    for file in ("params.yaml", "prefect.toml"):
        shutil.copy(PROJECT / file, root / file)
    (root / "dvc.yaml").write_text(PIPELINE, encoding="utf-8")
    (root / ".dvcignore").write_text("__pycache__\n/workspaces\n", encoding="utf-8")
    (root / "pipelines" / "steps.py").write_text(STEPS, encoding="utf-8")
    (root / "pipelines" / "scores.py").write_text(SCORES, encoding="utf-8")
    (root / "accepted").mkdir()
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n", encoding="utf-8")
    # the stages of a sweep's cells call these functions to train and evaluate
    (root / "pipelines" / "stages" / "train.py").write_text(TRAIN, encoding="utf-8")
    (root / "pipelines" / "stages" / "evaluate.py").write_text(EVALUATE, encoding="utf-8")
    (root / "pipelines" / "ray_head.py").write_text(SESSION, encoding="utf-8")
    small = Project(root)
    small.set_score(0.3)
    return small


@pytest.fixture(scope="session")
def prefect_api(tmp_path_factory) -> Iterator[str]:
    """The URL of a Prefect API that all tests share, because each start takes seconds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    command = [sys.executable, "-m", "pipelines.flows.server", str(port), "temporary"]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, cwd=PROJECT)
    url = f"http://127.0.0.1:{port}/api"
    for _ in range(1200):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/health", timeout=5):
            break
        assert server.poll() is None, "Prefect's server ended"
        time.sleep(0.1)
    yield url
    server.stdin.close()
    server.wait(timeout=30)


@pytest.fixture
def receiver() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a local receiver of messages, and those that it has received."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(500 if "fail" in self.path else 204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    received: list[dict[str, str]] = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
