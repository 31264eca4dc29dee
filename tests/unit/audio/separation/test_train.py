"""Mixtures, training and its continuation, and the measured quality."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qdformer.audio.io.level import amplitude_to_db, rms
from qdformer.audio.separation import train as train_module
from qdformer.audio.separation.mixtures import LEVEL_RANGE_DB, Mixtures
from qdformer.audio.separation.train import train_separator
from qdformer.audio.vggish.mixtures import load_sounds


def test_mixtures_are_the_sums_of_their_sources(sounds):
    split = load_sounds(sounds, "train")
    plain = Mixtures(split, 2, 4000, seed=0, varied=False)
    mixture, targets = plain.batch(3, 5)
    assert mixture.shape == (5, 4000) and targets.shape == (5, 2, 4000)
    torch.testing.assert_close(mixture, targets.sum(1))
    levels = [amplitude_to_db(rms(target.numpy())) for target in targets.flatten(0, 1)]
    assert min(levels) >= LEVEL_RANGE_DB[0] - 0.01 and max(levels) <= LEVEL_RANGE_DB[1] + 0.01
    assert torch.equal(plain.batch(3, 2)[0], mixture[:2])
    assert not torch.equal(plain.batch(4, 2)[0], mixture[:2])
    spectra = np.abs(np.fft.rfft(targets.numpy())).argmax(-1)
    assert ((spectra[:, 0] > 300) != (spectra[:, 1] > 300)).all()  # one low and one high tone each


def test_mixtures_of_training_have_silent_sources_and_parts(sounds):
    _, targets = Mixtures(load_sounds(sounds, "train"), 2, 2000, seed=0, varied=True).batch(0, 60)
    sounding = targets.any(-1).sum(-1)
    assert 2 <= (sounding == 1).sum() <= 25 and (sounding >= 1).all()
    halves = targets.unflatten(-1, (4, 500))[..., [0, 3], :].any(-1)
    partial = halves[..., 0] != halves[..., 1]
    assert 4 <= partial.sum() <= 40


@pytest.fixture(autouse=True)
def few_measurements(monkeypatch) -> None:
    monkeypatch.setattr(train_module, "MEASURED_MIXTURES", 4)
    monkeypatch.setattr(train_module, "MEASURED_BATCH", 4)


def test_training_separates_tones_and_continues_where_it_was_interrupted(sounds, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "SAVE_EVERY", 10)
    whole, record, losses = train_separator(sounds, settings, tmp_path / "a", progress=False)
    assert len(losses) == settings.steps and np.mean(losses[-5:]) < np.mean(losses[:5]) - 2
    assert record["si_sdri_seen_db"] > 3 and record["si_sdri_unseen_db"] > 3
    assert record["si_sdri_seen_db"] == pytest.approx(record["si_sdr_seen_db"], abs=6)
    assert record["recordings"] == 2 and record["noises"] == 1 and not whole.training

    def stop(state, *_):
        if len(state.losses) == 15:
            raise KeyboardInterrupt
        return step(state, *_)

    step = train_module._State.step
    monkeypatch.setattr(train_module._State, "step", stop)
    with pytest.raises(KeyboardInterrupt):
        train_separator(sounds, settings, tmp_path / "b", progress=False)
    taken = []
    monkeypatch.setattr(train_module._State, "step", lambda state, *rest: taken.append(1) or step(state, *rest))
    resumed, again, _ = train_separator(sounds, settings, tmp_path / "b", progress=False)
    assert len(taken) == settings.steps - 10 and again == record
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name

    taken.clear()
    other = settings.model_copy(update={"seed": 1, "steps": 2})
    (tmp_path / "b" / train_module.STATE).write_bytes(b"damaged")
    train_separator(sounds, other, tmp_path / "b", progress=False)
    assert len(taken) == 2


def test_too_few_validation_classes_leave_the_quality_of_unseen_recordings_open(sounds, settings, tmp_path):
    table = (sounds / "sounds.csv").read_text().splitlines()
    (sounds / "sounds.csv").write_text("\n".join(line for line in table if "val/high" not in line) + "\n")
    short = settings.model_copy(update={"steps": 1})
    _, record, _ = train_separator(sounds, short, tmp_path / "cache", progress=False)
    assert record["si_sdri_unseen_db"] is None and record["si_sdri_seen_db"] is not None
