"""Write a trained model as a folder that can be shared, and as ONNX and torch.export graphs of its whole path.

The folder holds config.json, model.safetensors, vggish.safetensors and a model card, as the Hugging Face hub expects
them; model.onnx and model.pt2 take frames and sound and give masks, without this project.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.cli import command_main, preset_parser
from pipelines.console import print_table
from pipelines.environment import shown_path
from pipelines.predict import load_segmenter, require_replaceable, require_writable
from pipelines.settings import preset_settings
from pipelines.workspace import open_workspace
from qdformer.utils.files import new_folder


def export_model(preset: str, model: str, out: str) -> Path:
    """Write the folder OUT, or `exported` in the preset's workspace, and print sizes, times and differences.

    Raises `InputError` if the folder holds anything but an export; otherwise as `load_segmenter` and `export`.
    """
    settings, workspace = preset_settings(preset), open_workspace(preset)
    folder = Path(out).expanduser() if out else workspace / "exported"
    require_writable(folder.parent)
    require_replaceable(folder, "config.json", "an exported model")
    segmenter = load_segmenter(settings, workspace, model)

    import torch

    from qdformer.inference.export import export

    print("Writing the graphs and comparing their results takes about a minute.", flush=True)
    with new_folder(folder) as partial:
        segmenter.save_pretrained(partial)
        files, seconds = export(segmenter.predictor, segmenter.clip_frames, partial)

    rows = [
        [
            file.path.name,
            f"{file.bytes / 1e6:,.0f}",
            f"{1000 * file.seconds:,.0f}",
            f"{file.probability_difference:.1e}",
            f"{file.pixel_difference:.3%}",
        ]
        for file in files
    ]
    print_table(
        f"Clips of {segmenter.clip_frames} frames on {torch.get_num_threads()} CPU threads",
        ["graph", "MB", "ms per clip", "largest difference of a probability", "pixels of another class"],
        [["the model itself", "", f"{1000 * seconds:,.0f}", "", ""], *rows],
    )
    return folder


def main() -> None:
    parser = preset_parser(__doc__)
    parser.add_argument("--model", default="", help="as for make predict")
    parser.add_argument("--out", default="", help="the folder to write (default: exported)")
    arguments = parser.parse_args()
    print(shown_path(export_model(arguments.data, arguments.model, arguments.out)))


if __name__ == "__main__":
    command_main(main)
