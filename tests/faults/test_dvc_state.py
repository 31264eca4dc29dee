"""DVC's own files: damaged objects of its cache, and locks that a killed process has left behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from pipelines.workspace import locked_outs, restore_out, workspace_lock
from qdformer.utils.errors import InputError


def test_a_damaged_object_of_the_cache_is_named_and_not_used(project, tmp_path):
    project.dvc_repro(project.root)
    md5, cache = locked_outs(project.root)["models/qdformer"], project.root / ".dvc/cache/files/md5"
    assert restore_out(project.root, md5, tmp_path / "intact")
    model = (tmp_path / "intact" / "model.safetensors").read_bytes()
    assert model == (project.root / "models/qdformer/model.safetensors").read_bytes()

    listing = cache / md5[:2] / md5[2:]
    (entry,) = [one for one in json.loads(listing.read_text()) if one["relpath"] == "model.safetensors"]
    weights = cache / entry["md5"][:2] / entry["md5"][2:]
    for number, path in enumerate((weights, listing)):
        intact = path.read_bytes()
        path.unlink()  # which may be linked to the file in the workspace
        path.write_bytes(bytes([intact[0] ^ 1]) + intact[1:])
        with pytest.raises(InputError, match=f"{path}: damaged, its MD5 is [0-9a-f]+; remove this file"):
            restore_out(project.root, md5, tmp_path / f"damaged-{number}")
        assert not (tmp_path / f"damaged-{number}").exists()
        path.write_bytes(intact)
    assert restore_out(project.root, md5, tmp_path / "again")


def test_the_lock_of_a_dead_process_clears_itself_and_one_that_is_garbage_is_named(project):
    locks = project.root / ".dvc" / "tmp" / "rwlock"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    holder = {"pid": int(dead.stdout), "cmd": "dvc repro"}
    outs = [str(project.root / name) for name in ("data/dataset", "models/qdformer", "reports/metrics")]
    locks.parent.mkdir(parents=True, exist_ok=True)
    locks.write_text(json.dumps({"read": {}, "write": dict.fromkeys(outs, holder)}))
    assert "Running stage 'train'" in project.dvc_repro(project.root)
    assert str(holder["pid"]) not in locks.read_text()

    locks.write_text("garbage")
    refused = project.python("-m", "pipelines.flows", "reproduce")
    assert refused.returncode == 1
    assert (
        refused.stderr == f"error: {locks}: DVC cannot read its locks; remove this file if no dvc command is running\n"
    )
    locks.unlink()
    with workspace_lock(project.root):
        pass
