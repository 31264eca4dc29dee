"""The rooms of the library: who may import whom, and which heavy tools are used where."""

from __future__ import annotations

import graphlib

import pytest

from tests.helpers import PROJECT
from tests.helpers.imports import LIBRARY, imports

ROOMS = (
    "reporting",
    "monitoring",
    "tracking",
    "inference",
    "training",
    "evaluation",
    "models",
    "data",
    "audio",
    "metrics",
    "config",
    "utils",
)
"""From the top to the ground: a room imports from itself and from the rooms below it."""
TOOLS = {
    "mlflow": {"qdformer.tracking"},
    "ray": {
        "qdformer.training.launch",
        "qdformer.training.worker",
        "qdformer.audio.features.ray_executor",
        "qdformer.utils.ray_session",
    },
    "prefect": set(),
    "dvc": set(),
}
"""Where in the library each tool of the pipeline may be imported."""


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_the_library_has_these_rooms_and_no_other_entry():
    entries = {path.name for path in (PROJECT / "qdformer").iterdir()} - {"__pycache__"}
    assert entries == {*ROOMS, "__init__.py", "py.typed"}


@pytest.mark.parametrize("module", LIBRARY)
def test_imports_go_downward(module):
    if not (here := room(module)):
        return
    upward = {
        name
        for name in imports(LIBRARY[module])
        if name in LIBRARY and room(name) and ROOMS.index(room(name)) < ROOMS.index(here)
    }
    assert not upward


def test_no_circle_of_imports():
    """Not even one that is only for type checking, or inside of functions."""
    graph = {
        module: {name for name in imports(path) if name in LIBRARY and name != module}
        for module, path in LIBRARY.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("tool", TOOLS)
def test_each_tool_stays_in_its_rooms(tool):
    users = {module for module, path in LIBRARY.items() if tool in {name.split(".")[0] for name in imports(path)}}
    allowed = TOOLS[tool]
    strangers = {user for user in users if not any(user == name or user.startswith(f"{name}.") for name in allowed)}
    assert not strangers
    assert all(any(user.startswith(name) for user in users) for name in allowed), f"{tool}: not used where expected"
