"""The files of an evaluation of three small clips, one of them silent, for tests of the report page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas

from qdformer.data.layout import ClassInfo, metadata_row, write_clip, write_metadata
from qdformer.reporting import plots

CLASSES = [ClassInfo("dog", True), ClassInfo("cat", False)]
FRAMES, SIDE, RATE = 4, 32, 16000
SCORES = {"miou_dataset": 0.357, "davis_jf": 0.592, "miou_unseen": 0.219}
DECOMPOSITION = {"sounding_exact_2": 0.41, "token_cosine_frame": 0.62, "probe_sounding_exact_2": 0.38}
UNDEFINED = {"sounding_exact_3": None, "code_nmi": None}
CONDITIONS = {"clean": 1.0, "snr-5": 0.5, "shuffled": 0.1, "silence": 0.05}
FALSE_POSITIVE_RATE = {"silence": {"fpr": 0.25}}


def write_result(workspace: Path) -> Path:
    """Write a data set, a checkpoint and reports below `workspace`; return the folder of the reports."""
    reports, root = workspace / "reports", workspace / "data" / "dataset"
    (reports / "metrics").mkdir(parents=True)
    rows, pictures = [], {}
    seconds = np.arange(FRAMES * RATE) / RATE
    for index, uid in enumerate(("one", "two", "quiet")):
        sounding = uid != "quiet"
        truth = np.zeros((FRAMES, SIDE, SIDE), np.uint8)
        for frame in range(index, FRAMES):  # a square that moves to the right; clip "two" starts without it
            truth[frame, 8:20, 4 * frame : 4 * frame + 10] = (1 + index) * sounding
        images = np.full((FRAMES, SIDE, SIDE, 3), 40 * (1 + index), np.uint8) + 60 * (truth[..., None] > 0)
        tone = 0.3 * sounding * np.sin(2 * np.pi * 440 * seconds)
        write_clip(root, "v1m", uid, images.astype(np.uint8), truth, tone)
        names = [CLASSES[index].name] if sounding else []
        rows.append(metadata_row(uid, subset="v1m", split="test", classes=names, frames=FRAMES, unseen=False))
        class_probs = np.zeros((FRAMES, len(CLASSES)), np.float32)
        if sounding:
            class_probs[:, index] = np.linspace(0.5, 0.9, FRAMES)
        shifted = np.roll(truth, 2, axis=1)
        shown = {"images": images.astype(np.uint8), "truth": truth, "prediction": shifted, "class_probs": class_probs}
        pictures |= {f"{uid}/{name}": array for name, array in shown.items()}
    write_metadata(root, rows, CLASSES)
    np.savez_compressed(reports / "pictures.npz", **pictures)
    intervals = {}
    for name, factor in CONDITIONS.items():
        scores = {key: value * factor for key, value in (SCORES | DECOMPOSITION).items()}
        (reports / "metrics" / f"{name}.json").write_text(
            json.dumps({**scores, **UNDEFINED, "clips": 3, **FALSE_POSITIVE_RATE.get(name, {})})
        )
        intervals[name] = {key: {"value": v, "low": v - 0.03, "high": v + 0.03} for key, v in scores.items()}
        intervals[name] |= {key: {"value": None, "low": None, "high": None} for key in UNDEFINED}
    (reports / "intervals.json").write_text(json.dumps(intervals))
    clips = [{"uid": uid, "miou_dataset": 0.4, "davis_jf": None, "condition": "clean"} for uid in ("one", "two")]
    pandas.DataFrame(clips).to_csv(reports / "clips.csv", index=False)
    columns = ("id", "name", "unseen", "frames", "iou", "iou_per_frame", "f_per_frame", "condition")
    classes = [(0, "background", False, 12, 0.9, 0.9, 0.9, "clean"), (1, "dog", True, 4, 0.25, 0.2, 0.3, "clean")]
    classes.append((2, "cat", False, 0, None, None, None, "clean"))
    pandas.DataFrame(classes, columns=columns).to_csv(reports / "classes.csv", index=False)
    pandas.DataFrame([(-5, 0.2)], columns=["snr", "miou_dataset"]).to_csv(reports / "robustness.csv", index=False)
    history = [{"epoch": 1, "total": 2.0}, {"epoch": 2, "total": 1.0}]
    plots.save(plots.training_curves(history), reports / "figures" / "training.png")
    models = workspace / "models" / "qdformer"
    models.mkdir(parents=True)
    (models / "model.safetensors").write_text("weights")
    pandas.DataFrame(history).to_csv(models / "history.csv", index=False)
    return reports


def write_sources(reports: Path) -> None:
    """Write the table of clips grouped by their number of sources, which older results lack."""
    groups = [("sources", "1", 2, 0.3, 0.2, 0.4), ("sources", "3+", 1, None, None, None)]
    columns = ("by", "group", "clips", "davis_jf", "davis_jf_low", "davis_jf_high")
    pandas.DataFrame(groups, columns=columns).to_csv(reports / "sources.csv", index=False)
