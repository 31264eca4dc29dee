"""Controls for the decomposition: which classes sound, told from the sound alone.

A linear layer on a frame's audio features (VGGish) predicts the classes that sound and are visible. It is fitted on the
clean sound of the training split and evaluated on the same sound as the model:

- `probe`: as it is. It says how much the features hold without any picture.
- `probe_visible`: classes of which no object is in the picture, sounding or not, score 0. It says what a perfect
  recognition of objects would add. Only composed data sets record which objects are in the picture.
- `tracks`: where several sources sound at once, the features of each one's own track, and the highest of their
  probabilities. It says what a perfect separation would add. Only the clean sound of composed data sets has tracks.

Shapes: T frames of one clip, S frames of many clips, A = 128 audio features, C object classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas

from qdformer.audio.features.extract import PATCHES_PER_BATCH
from qdformer.audio.io.read import read_audio
from qdformer.audio.vggish.log_mel import HOP_LENGTH, PATCH_FRAMES
from qdformer.data.labels import open_label_map
from qdformer.data.layout import track_paths
from qdformer.metrics import SoundingScores
from qdformer.metrics.semantic import nanmean
from qdformer.utils.constants import EMBEDDING_SIZE, IGNORE_INDEX, SAMPLE_RATE, SPLITS

if TYPE_CHECKING:
    from qdformer.audio.features.extract import EmbedderConfig
    from qdformer.config.train import Task
    from qdformer.data.manifest import Classes

MAX_CLIPS = 2048
"""Maximum number of clips of a split that the probe is fitted to, or selected on."""
PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""The weights of the squared norm among which the validation split selects, from the strongest to the weakest."""
_MAX_ITERATIONS = 100


@dataclass(frozen=True)
class LinearProbe:
    """A linear layer on standardized audio features, with a sigmoid for each class."""

    mean_A: np.ndarray
    scale_A: np.ndarray
    weight_AC: np.ndarray
    bias_C: np.ndarray

    def __call__(self, features_TA: np.ndarray) -> np.ndarray:
        """The probability that each class sounds and is visible: float64 [T, C]."""
        return _sigmoid((features_TA - self.mean_A) * self.scale_A @ self.weight_AC + self.bias_C)


def probe_scores(
    probe: LinearProbe | None, features: Mapping[str, np.ndarray], clips: pandas.DataFrame, classes: Classes
) -> dict[str, dict[str, np.ndarray]]:
    """The scores of `probe` and `probe_visible` for the sound `features` (uid -> [T, A]): by name and uid, [T, C].

    `clips` has the columns uid and visible of the manifest. `probe_visible` has no scores of clips without a record of
    their visible classes, or of visible classes that the task does not distinguish.
    """
    scores = {} if probe is None else {uid: probe(features[uid]) for uid in clips["uid"]}
    visible = dict(zip(clips["uid"], clips["visible"], strict=True))
    restricted = {}
    for uid, probs_TC in scores.items():
        names = visible[uid]
        if names is not None and {*names} <= {*classes.names}:
            restricted[uid] = probs_TC * [name in names for name in classes.names]
    return {"probe": scores, "probe_visible": restricted}


def track_scores(
    probe: LinearProbe | None, features: Mapping[str, np.ndarray], clips: pandas.DataFrame, config: EmbedderConfig
) -> dict[str, np.ndarray]:
    """The scores of `tracks` by uid, [T, C], for silent clips and clips with tracks; empty if no clip has tracks.

    In a second in which fewer than two tracks sound, the features of the clip are those of its only source. `features`
    are those of clean sound; `clips` has the columns uid, frames, silent and audio of the manifest. Raises `AudioError`
    if a track cannot be read.
    """
    paths_of = {clip.uid: track_paths(clip.audio.parent) for clip in clips.itertuples()}
    if probe is None or not any(paths_of.values()):
        return {}
    scores: dict[str, np.ndarray] = {}
    patches: list[tuple[str, int, np.ndarray]] = []
    for clip in clips.itertuples():
        paths = paths_of[clip.uid]
        if paths or clip.silent:
            scores[clip.uid] = probe(features[clip.uid])
        if len(paths) < 2:
            continue
        tracks_VS = np.stack([np.resize(read_audio(path), clip.frames * SAMPLE_RATE) for path in paths])
        sounding_VT = (tracks_VS != 0).reshape(len(paths), clip.frames, SAMPLE_RATE).any(axis=2)
        for second in range(clip.frames):
            sounding_V = sounding_VT[:, second]
            if np.count_nonzero(sounding_V) < 2:
                continue
            first = second * (SAMPLE_RATE if config.center else PATCH_FRAMES * HOP_LENGTH)  # as `Embedder` cuts clips
            scores[clip.uid][second] = 0
            patches += [(clip.uid, second, part_S) for part_S in tracks_VS[sounding_V, first : first + SAMPLE_RATE]]
    if not patches:
        return scores
    embedder = config.load()
    for start in range(0, len(patches), PATCHES_PER_BATCH):
        chunk = patches[start : start + PATCHES_PER_BATCH]
        embedded = embedder.embed_waveforms([part_S for _, _, part_S in chunk], [1] * len(chunk))
        for (uid, second, _), features_1A in zip(chunk, embedded, strict=True):
            scores[uid][second] = np.maximum(scores[uid][second], probe(features_1A)[0])
    return scores


def fit_probe(
    clips: pandas.DataFrame, features: Mapping[str, np.ndarray], classes: Classes, task: Task, seed: int = 0
) -> LinearProbe | None:
    """Fit the probe to the clips of the training split; their `features` are those of clean sound, by uid: [T, A].

    The penalty with the highest mean of `SOUNDING_METRICS` on the validation split is selected; without labeled frames
    there, on the training split. Of a split with more than `MAX_CLIPS` clips, so many are drawn. `clips` has the
    columns uid, split, labels, labeled and binary of the manifest. Returns None if no frame of the training split is
    labeled.
    """
    train, selection = (labeled_frames(_drawn(clips, split, seed), features, classes, task) for split in SPLITS[:2])
    if not len(train[0]):
        return None
    if not len(selection[0]):
        selection = train
    probes: list[LinearProbe] = []
    flat = None
    for penalty in PENALTIES:
        probe, flat = _fit(*train, penalty, flat)
        probes.append(probe)
    return max(probes, key=lambda probe: _mean_score(probe, *selection))


def labeled_frames(
    clips: pandas.DataFrame, features: Mapping[str, np.ndarray], classes: Classes, task: Task
) -> tuple[np.ndarray, np.ndarray]:
    """The features [S, A] and sources (bool [S, C]) of all labeled frames of the clips."""
    inputs, present = [np.empty((0, EMBEDDING_SIZE))], [np.empty((0, len(classes)), bool)]
    for clip in clips.itertuples():
        frames = [index for index, path in enumerate(clip.labels) if path is not None]
        inputs.append(np.asarray(features[clip.uid], np.float64)[frames])
        present.append(np.stack([_sources(clip, index, len(classes), task) for index in frames]))
    return np.concatenate(inputs), np.concatenate(present)


def _sources(clip: Any, index: int, classes: int, task: Task) -> np.ndarray:
    pixels = np.array(open_label_map(clip.labels[index], clip.binary, task).histogram()[:IGNORE_INDEX])
    return pixels[1 : classes + 1] > 0


def _mean_score(probe: LinearProbe, features_SA: np.ndarray, present_SC: np.ndarray) -> float:
    scores = SoundingScores(present_SC.shape[1])
    scores.update(probe(features_SA), present_SC)
    return float(nanmean(np.stack(list(scores.compute(scores.all_indices).values()), axis=1))[0])


def _drawn(clips: pandas.DataFrame, split: str, seed: int) -> pandas.DataFrame:
    found = clips[(clips["split"] == split) & (clips["labeled"] > 0)]
    if len(found) > MAX_CLIPS:
        chosen = np.random.default_rng(seed).choice(len(found), MAX_CLIPS, replace=False)
        found = found.iloc[np.sort(chosen)]
    return found


def _fit(
    features_SA: np.ndarray, present_SC: np.ndarray, penalty: float, start: np.ndarray | None
) -> tuple[LinearProbe, np.ndarray]:
    """Minimize the mean binary cross-entropy and `penalty` times the squared norm of the weights, by L-BFGS."""
    from scipy.optimize import minimize

    mean_A, deviation_A = features_SA.mean(axis=0), features_SA.std(axis=0)
    scale_A = 1 / np.where(deviation_A > 1e-6, deviation_A, 1)  # some of VGGish's features are always 0
    inputs_SA = (features_SA - mean_A) * scale_A
    target_SC = present_SC.astype(np.float64)
    shape = (inputs_SA.shape[1] + 1, target_SC.shape[1])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight_AC, bias_C = flat.reshape(shape)[:-1], flat.reshape(shape)[-1]
        logits_SC = inputs_SA @ weight_AC + bias_C
        error_SC = _sigmoid(logits_SC) - target_SC
        value = np.logaddexp(0, logits_SC).sum() - logits_SC[present_SC].sum()
        gradient_AC = inputs_SA.T @ error_SC / target_SC.size + 2 * penalty * weight_AC
        gradient_C = error_SC.sum(axis=0) / target_SC.size
        gradient = np.concatenate([gradient_AC, gradient_C[None]])
        return value / target_SC.size + penalty * np.square(weight_AC).sum(), gradient.ravel()

    start = np.zeros(shape).ravel() if start is None else start
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": _MAX_ITERATIONS}).x
    return LinearProbe(mean_A, scale_A, found.reshape(shape)[:-1], found.reshape(shape)[-1]), found


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
