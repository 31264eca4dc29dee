"""The drift of accepted clips in the retraining: measured before anything is trained, told, and a reason to stop."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from mlflow import MlflowClient
from PIL import Image

from pipelines.drift import PROFILE, DriftError, require_allowed
from qdformer.data.accepted import read_accepted, write_accepted
from qdformer.monitoring.drift import Drift, Shift

RETRAIN = ("-m", "pipelines.flows", "retrain")
DIFFERENT = Drift(30, 100, (Shift("sound", 0.3, 0.001, True), Shift("pictures", 0.0, 1.0, False)))
ALIKE = Drift(30, 100, (Shift("sound", 0.0, 0.5, False),))
INCOMPLETE = Drift(30, 0, not_measured="the champion has no profile", complete=False)
TOO_FEW = Drift(2, 100, not_measured="2 new clips, at least 8 are needed")


def settings(drift: str) -> SimpleNamespace:
    return SimpleNamespace(promote=SimpleNamespace(drift=drift))


@pytest.mark.parametrize("drift", [DIFFERENT, INCOMPLETE])
def test_clips_that_differ_or_cannot_be_compared_stop_the_retraining_if_that_is_wanted(drift):
    with pytest.raises(
        DriftError, match=r"promote.drift: stop: 30 new clips .*to quarantine with make set-apart, or set .* warn"
    ):
        require_allowed(settings("stop"), drift)
    require_allowed(settings("warn"), drift)


@pytest.mark.parametrize("drift", [ALIKE, TOO_FEW])
def test_other_clips_stop_nothing(drift):
    require_allowed(settings("stop"), drift)


def accept(project, names: list[str], seed: int) -> None:
    """Accept clips, as `take_in_arrivals` does after its checks, in the small project."""
    generator, accepted = np.random.default_rng(seed), project.root / "accepted"
    rows = [{"vid": name, "uid": name, "s_min": "0", "s_sec": "0", "a_obj": "dog", "split": "train", "label": "v1s"}
            for name in names]  # fmt: skip
    for name in names:
        folder = accepted / "v1s" / name / "frames"
        folder.mkdir(parents=True)
        pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
        for index in range(3):
            Image.fromarray(pixels).save(folder / f"{index}.jpg")
        soundfile.write(folder.parent / "audio.wav", generator.uniform(-0.1, 0.1, 48000), 16000)
    write_accepted(accepted, [*read_accepted(accepted), *({**row, "frames": "3"} for row in rows)])


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_new_clips_are_compared_with_those_of_the_champion(project, prefect_api, receiver):
    url, received = receiver

    def retrain(score: float):
        project.set_score(score)
        return project.python(*RETRAIN, PREFECT_API_URL=prefect_api, QDFORMER_WEBHOOK=url)

    def version(number: int):
        return client.get_model_version("qdformer-stamps", str(number))

    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    first = retrain(0.3)
    assert first.returncode == 0, first.stderr
    assert "Drift" not in first.stdout, "no clip is new to the first champion"
    assert PROFILE in {file.path for file in client.list_artifacts(version(1).run_id)}

    project.edit("params.yaml", "  drift: warn", "  drift: stop")
    accept(project, [f"same-{index}" for index in range(20)], seed=1)
    alike = retrain(0.4)
    assert alike.returncode == 0, alike.stderr
    assert "Drift: 20 new clips against 20 training clips of the champion: sound: MMD² " in alike.stdout
    assert alike.stdout.count("no difference found") >= 4
    assert "version 2, champion" in alike.stdout and version(2).tags["drift"].startswith("20 new clips")
    assert [message["event"] for message in received] == ["promotion", "promotion"]

    received.clear()
    accept(project, [f"loud-{index}" for index in range(20)], seed=2)
    stopped = retrain(0.5)
    assert stopped.returncode == 1 and "Traceback" not in stopped.stderr
    assert "promote.drift: stop: 20 new clips against 40 training clips" in stopped.stderr
    assert "sound: MMD² +0." in stopped.stderr and "Running stage 'train'" not in stopped.stdout
    assert [message["event"] for message in received] == ["drift", "failure"]
    assert "pictures: MMD²" in received[0]["text"] and "differs" in received[0]["text"]

    apart = project.python("-m", "pipelines.set_apart", "--reason", "too loud")
    assert apart.returncode == 0, apart.stderr
    assert apart.stdout.startswith("Moved to quarantine/withdrawn (20): loud-0, loud-1, ")
    assert (project.root / "quarantine/withdrawn/loud-19/reason.txt").read_text() == "too loud\n"
    assert {row["uid"][:4] for row in read_accepted(project.root / "accepted")} == {"same"}
    accept(project, [f"loud-{index}" for index in range(20)], seed=2)

    received.clear()
    project.edit("params.yaml", "  drift: stop", "  drift: warn")
    warned = retrain(0.5)
    assert warned.returncode == 0, warned.stderr
    assert "version 3, champion" in warned.stdout and "differs" in version(3).tags["drift"]
    assert [message["event"] for message in received] == ["drift", "promotion"]
