"""The folder of a model as the Hugging Face hub keeps one: weights, `config.json` and a model card.

`model.safetensors` is the checkpoint, `vggish.safetensors` the audio encoder, and `config.json` holds the input rules
of the training, the rules for long videos and the names of the classes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from qdformer.audio.vggish.model import VGGish, save_vggish
from qdformer.inference.predictor import Predictor
from qdformer.training.checkpoint import save_model
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    import torch

CONFIG, CHECKPOINT, VGGISH = "config.json", "model.safetensors", "vggish.safetensors"
INPUT_RULES = ("image_size", "resize", "short_clips", "center")
"""Arguments of `Predictor.from_checkpoint`."""
MODEL_CARD = """---
{{ card_data }}
---

# Audio-visual segmentation

This model marks, in each second of a video, the pixels of the objects that are sounding, and names them.
`config.json` lists its classes. The license of the weights depends on the data that they were trained on: whoever
shares them adds it here.

```python
from qdformer.inference import Segmenter

segmenter = Segmenter.from_pretrained("OWNER/NAME")  # or this folder
for result in segmenter.segment("clip.mp4"):
    print(result.time, [(item.name, item.score, item.box) for item in result.objects])
```

Paper: {{ paper_url }}
"""


def write_folder(predictor: Predictor, folder: Path, rules: dict[str, Any]) -> None:
    """Write the weights and `config.json`; `rules` are the arguments of `Segmenter` for long videos.

    Raises `ValueError` for a predictor with VGGish's PCA step, which the folder cannot hold.
    """
    embedder = predictor.embedder
    if embedder.pca is not None:
        raise ValueError("a model that uses VGGish's PCA step cannot be shared; expected features.pca: null")
    assert isinstance(embedder.vggish, VGGish)
    config = {
        "image_size": predictor.image_size,
        "resize": predictor.resize,
        "short_clips": embedder.short_clips,
        "center": embedder.center,
        **rules,
        "classes": predictor.classes.names,
    }
    save_model(folder / CHECKPOINT, predictor.model, predictor.classes, predictor.model.settings)
    save_vggish(embedder.vggish, folder / VGGISH)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def find_folder(model: str, **download: Any) -> Path:
    """The folder that `model` names, or the local copy of the model with this id on the Hugging Face hub.

    `download` are arguments of `huggingface_hub.snapshot_download`. Raises `InputError` if neither is at hand, or the
    folder has no `config.json`.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise InputError(f"{folder / CONFIG}: no such file; expected a folder written by `make export`")
        return folder
    try:
        return Path(snapshot_download(model, allow_patterns=[CONFIG, CHECKPOINT, VGGISH], **download))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{model}: no such folder, and no model of the Hugging Face hub at hand: {reason}") from None


def read_folder(folder: Path, device: torch.device | str = "cpu") -> Predictor:
    """The predictor of a folder that `write_folder` wrote.

    Raises `InputError` if `config.json` lacks a rule; otherwise as `Predictor.from_checkpoint`.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rules = {name: config[name] for name in INPUT_RULES}
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not the configuration of a model: {error}; expected {INPUT_RULES}") from None
    return Predictor.from_checkpoint(folder / CHECKPOINT, folder / VGGISH, device=device, **rules)
