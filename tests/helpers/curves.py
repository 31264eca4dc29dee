"""The losses of one recipe on 1, 2 and 3 ranks in one picture: `python -m tests.helpers.curves PICTURE.png`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from qdformer.config.train import Train
from qdformer.reporting import plots
from qdformer.reporting.plots.style import new_figure
from tests.helpers.distributed import on_ranks, recipe_with, train, write_clips

RANKS = {1: "-", 2: "--", 3: ":"}
"""Number of ranks, and the line style of its curve."""
SHOWN = {"total": "total loss", "mask": "mask loss", "gradient_norm": "gradient norm"}


def history(root: Path, recipe: Train) -> list[dict[str, float]]:
    return train(recipe, root).history


def main(picture: Path) -> None:
    recipe = recipe_with(epochs=10, batch_size=5, learning_rate=0.002)
    with tempfile.TemporaryDirectory() as folder:
        root = write_clips(Path(folder) / "dataset", count=14)
        curves = {ranks: on_ranks(ranks, history, root, recipe)[0] for ranks in RANKS}
    with new_figure(11, 2.9) as figure:
        for axes, (name, title) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
            for ranks, line in RANKS.items():
                rows = curves[ranks]
                label = f"{ranks} worker{'s' * (ranks > 1)}"
                axes.plot([row["epoch"] for row in rows], [row[name] for row in rows], line, lw=4 - ranks, label=label)
            axes.set_title(title)
            axes.set_xlabel("epoch")
        figure.axes[0].legend()
        figure.tight_layout()
    plots.save(figure, picture)
    for ranks in list(RANKS)[1:]:
        difference = max(
            abs(row[name] - alone[name]) / alone[name]
            for row, alone in zip(curves[ranks], curves[1], strict=True)
            for name in SHOWN
        )
        print(f"{ranks} ranks: the largest relative difference from one rank is {difference:.1e}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
