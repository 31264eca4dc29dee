"""Flow `data`: take in a published data set, from what the user names; `make repro DATA=...` goes on from there."""

from __future__ import annotations

import shlex
from pathlib import Path

from prefect import flow

from pipelines.flows.pipeline import run_dvc_repro
from pipelines.flows.server import prefect_api
from pipelines.flows.terminal import arguments, load_tracking, run_command
from pipelines.workspace import open_workspace, save_overrides, workspace_lock
from qdformer.utils.download import is_url
from qdformer.utils.errors import InputError


@flow(name="data", flow_run_name="data {data}")
def import_dataset(data: str, source: list[str]) -> None:
    """Remember `source` for the preset `data` (none: as it was) and bring its stage `download` up to date."""
    if source:
        save_overrides(data, {"download": {"source": source}})
    workspace = open_workspace(data)
    with workspace_lock(workspace) as lock:
        run_dvc_repro(workspace, lock, ("download",))
    print(f"The data is in {workspace / 'data' / 'dataset'}; go on with:  make repro DATA={data}")


def parse_source(text: str) -> list[str]:
    """Paths and URLs, divided by blanks and quoted as in a shell; the paths become absolute."""
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise InputError(f"SOURCE={text}: {error}") from None
    return [part if is_url(part) else str(Path(part).expanduser().resolve()) for part in parts]


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--source", default="", help="folders, archives or URLs that hold it (default: as before)")
    given = parser.parse_args()

    def run() -> None:
        if not given.data:
            raise InputError("DATASET is missing; expected s4, ms3 or avss, as in: make data DATASET=s4 SOURCE=s4.zip")
        source = parse_source(given.source)
        with prefect_api(meanwhile=load_tracking):
            import_dataset(given.data, source)

    run_command(run, given.data)
