"""Which convention every reported figure follows, in one line each, for records and reports."""

from __future__ import annotations

from qdformer.config.download import PUBLISHED
from qdformer.config.settings import Settings

PROTOCOLS = {
    "miou_dataset": "mean IoU over classes, background among them; pixels of the whole set are added, then divided",
    "miou_per_frame": "mIoU of AVSS (Zhou et al., 2023): IoU in every frame, averaged over frames, then over classes",
    "fscore_per_frame": "F-score of AVSS, beta^2 = 0.3, in every frame, averaged over frames, then over classes",
    "avsbench_j": "J of AVSBench (Zhou et al., 2022): all that sounds as one object; empty truth scores by background",
    "avsbench_f": "F of AVSBench, beta^2 = 0.3, highest of 255 thresholds on the mean curve of every 4 clips",
    "davis_j": "region similarity of DAVIS: IoU of all that sounds as one object; 1 where both are empty",
    "davis_f": "boundary F of DAVIS of all that sounds as one object, tolerance 0.8 % of the diagonal",
    "davis_jf": "mean of davis_j and davis_f",
    "avsbench_j_sounding": "avsbench_j over the frames in which something sounds",
    "predicted_area": "mean share of the pixels marked as sounding",
    "predicted_frames": "share of the frames of which more than 1 % is marked as sounding",
    "fpr": "false-positive rate of AVSBench-Robust: `predicted_area` under a sound of nothing in the picture",
    "g_miou": "harmonic mean of avsbench_j_sounding under the true sound and 1 minus that under the false one",
    "miou_seen": "miou_dataset over the classes whose test pictures and recordings are like training's, no background",
    "miou_unseen": "miou_dataset over the classes of which test has new pictures or recordings, no background",
}


def evaluation_setup(settings: Settings) -> dict[str, str]:
    """What figures must be told with, whatever their convention: the split and its rule, the task, the resizing."""
    rule = settings.download.split if settings.download.dataset in PUBLISHED else "composed"
    return {
        "split": f"{settings.evaluate.split}, {rule}",
        "task": settings.train.task,
        "resize": f"{settings.train.resize} {settings.train.image_size}",
    }
