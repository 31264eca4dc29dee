"""Move accepted clips to quarantine: `python -m pipelines.set_apart [--data NAME] [--clips "UID ..."] [--reason WHY]`.

Without names these are all clips that the champion was not trained on: those that a retraining refused for their drift.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pipelines.arrivals import QUARANTINE
from pipelines.cli import command_main, preset_parser
from pipelines.environment import shown_path, tracking_environment
from pipelines.record import require_tracking_store
from pipelines.workspace import ACCEPTED, locked_workspace
from qdformer.utils.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from qdformer.config.settings import Settings


def refused_clips(settings: Settings, workspace: Path, data: str) -> list[str]:
    """The accepted clips that the champion was not trained on; raises `InputError` if that is not known."""
    require_tracking_store()
    os.environ.update(tracking_environment())
    from pipelines import drift, promotion  # these imports take seconds
    from qdformer import tracking

    model = promotion.model_name(settings, data)
    champion = tracking.find_champion(model)
    reference = None if champion is None else drift.fetch_champion_profile(settings, workspace, champion)
    if reference is None:
        lacking = "no champion yet" if champion is None else f"version {champion.version} has no profile of its clips"
        raise InputError(f'model {model}: {lacking}; name the clips to set apart: CLIPS="UID ..."')
    return drift.unknown_clips(workspace, reference)


def main() -> None:
    parser = preset_parser(__doc__)
    parser.add_argument("--clips", default="", help="uids of accepted clips (default: all new to the champion)")
    parser.add_argument("--reason", default="", help="why, for reason.txt")
    arguments = parser.parse_args()
    with locked_workspace(arguments.data) as (settings, workspace, _):
        clips = arguments.clips.split() or refused_clips(settings, workspace, arguments.data)
        if not clips:
            print("No clip is new to the champion; nothing was moved.")
            return
        from qdformer.data.incoming import withdraw  # this import takes seconds

        withdraw(workspace / ACCEPTED, workspace / QUARANTINE, clips, arguments.reason or "set apart by hand")
    print(f"Moved to {shown_path(workspace / QUARANTINE / 'withdrawn')} ({len(clips)}): {', '.join(clips)}")


if __name__ == "__main__":
    command_main(main)
