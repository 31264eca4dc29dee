"""Give the alias `champion` back to an earlier version: `python -m pipelines.rollback [--data NAME] [--to VERSION]`."""

from __future__ import annotations

import os

from pipelines.cli import command_main, preset_parser
from pipelines.console import print_table
from pipelines.environment import tracking_environment
from pipelines.record import require_tracking_store
from pipelines.settings import preset_settings


def main() -> None:
    parser = preset_parser(__doc__)
    parser.add_argument("--to", default="", help="the version that becomes the champion (default: the one before)")
    parser.add_argument("--reason", default="", help="why, for the log and for the version that is taken back")
    arguments = parser.parse_args()
    settings = preset_settings(arguments.data)
    require_tracking_store()
    os.environ.update(tracking_environment())
    from pipelines.promotion import model_name  # these imports take seconds
    from qdformer import tracking

    model = model_name(settings, arguments.data)
    change = tracking.roll_back(model, arguments.to or None, arguments.reason or "no reason given")
    print(f"{model}: version {change.after} is the champion again, version {change.before} is withdrawn\n")
    rows = [[one.time, one.before or "", one.after, one.by, one.reason] for one in tracking.read_alias_log(model)]
    print_table("Changes of the champion", ["time (UTC)", "from", "to", "by", "reason"], rows)


if __name__ == "__main__":
    command_main(main)
