"""Flow `data`: import a published data set from the files or URLs that the user names."""

from __future__ import annotations

from prefect import flow

from pipelines.environment import shown_path
from pipelines.flows.pipeline import run_dvc_repro
from pipelines.settings import save_overrides
from pipelines.workspace import locked_workspace


@flow(name="data", flow_run_name="data {data}")
def import_dataset(data: str, source: list[str]) -> None:
    """Save `source` for the preset `data` (empty: keep the saved one) and bring its stage `download` up to date."""
    if source:
        save_overrides(data, {"download": {"source": source}})
    with locked_workspace(data) as (_, workspace, lock):
        run_dvc_repro(workspace, lock, ("download",))
    print(f"The data set is in {shown_path(workspace / 'data' / 'dataset')}; continue with:  make repro DATA={data}")
