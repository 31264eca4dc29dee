"""One line for each reported metric that names its convention, for records and reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qdformer.config.settings import Settings

PROTOCOLS = {
    "miou_dataset": "mean IoU over classes with background; intersections and unions are summed over the whole set",
    "miou_per_frame": "mIoU of AVSS (Zhou et al., 2023): IoU of every frame, averaged over frames, then over classes",
    "fscore_per_frame": "F-score of AVSS, beta^2 = 0.3, of every frame, averaged over frames, then over classes",
    "avsbench_j": "J of AVSBench (Zhou et al., 2022), sounding objects as one mask; empty truth scores its background",
    "avsbench_f": "F of AVSBench, beta^2 = 0.3, maximum over 255 thresholds of the mean curve of every 4 clips",
    "davis_j": "region similarity of DAVIS: IoU of the sounding objects as one mask; 1 if both are empty",
    "davis_f": "boundary F-score of DAVIS, sounding objects as one mask, tolerance 0.8 % of the diagonal",
    "davis_jf": "mean of davis_j and davis_f",
    "avsbench_j_sounding": "avsbench_j over the frames that have a sounding object",
    "predicted_area": "mean fraction of pixels predicted as sounding",
    "predicted_frames": "fraction of frames of which more than 1 % is predicted as sounding",
    "fpr": "false-positive rate of AVSBench-Robust: `predicted_area` under a sound of no object in the picture",
    "g_miou": "harmonic mean of avsbench_j_sounding with the true sound and 1 minus that with a negative sound",
    "miou_seen": "miou_dataset without background, over the classes whose test pictures or recordings are in training",
    "miou_unseen": "miou_dataset without background, over the classes whose test pictures and recordings are not",
    "sounding_exact_1": "fraction of frames with one sounding class whose highest class probability is that class",
    "sounding_exact_2": "fraction of frames with two sounding classes whose two highest probabilities are those two",
    "sounding_exact_3": "fraction of frames with three sounding classes whose three highest are those three",
    "sounding_map": "average precision of a class's probability over all frames, averaged over classes",
    "token_cosine_clip": "mean cosine between different tokens of a clip, before quantization; 1 if they are one",
    "token_cosine_frame": "mean cosine between different tokens of a frame with two or more sounding classes",
    "codes_1": "mean number of different codes among the tokens of a frame with one sounding class",
    "codes_2": "mean number of different codes among the tokens of a frame with two sounding classes",
    "codes_3": "mean number of different codes among the tokens of a frame with three sounding classes",
    "code_nmi": "normalized mutual information of sounding classes and the codes of the queries assigned to them",
    "source_token_share": "fraction of sounding classes with a query of their own (Hungarian) that predicts the class",
}


def evaluation_setup(settings: Settings) -> dict[str, str]:
    """The settings without which a metric cannot be interpreted: split and its rule, task, resizing."""
    return {
        "split": f"{settings.evaluate.split}, {settings.download.split_rule}",
        "task": settings.train.task,
        "resize": f"{settings.train.resize} {settings.train.image_size}",
    }
