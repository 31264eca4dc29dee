"""What the project's modules import, read from their source without running it."""

from __future__ import annotations

import ast
import functools
from collections.abc import Collection, Iterator
from pathlib import Path

from tests.helpers import PROJECT


def modules(package: str) -> dict[str, Path]:
    """The modules of a package of the project, by dotted name; a package stands for its `__init__.py`."""
    found = {}
    for path in sorted((PROJECT / package).rglob("*.py")):
        parts = path.relative_to(PROJECT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


LIBRARY = modules("qdformer")
MODULES = LIBRARY | modules("pipelines")


@functools.cache
def imports(path: Path, typing: bool = True) -> frozenset[str]:
    """The modules and names that a file imports, also inside functions.

    Without `typing`, imports under `if TYPE_CHECKING:` are left out: they have no effect at run time.
    """
    return frozenset(_imported_names(path, typing))


def _imported_names(path: Path, typing: bool) -> Iterator[str]:
    waiting: list[ast.AST] = [_parse(path)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and not typing and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import; expected an absolute one"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module
        waiting += (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt | ast.excepthandler))


def run_time_modules(module: str, left_out: Collection[str] = ()) -> set[str]:
    """The modules of the project that `module` needs at run time, itself included.

    The `__init__.py` of each package on the way is one of them if it holds more than a docstring. Modules in `left_out`
    and those below them are not followed.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or name not in MODULES:
            continue
        if any(name == other or name.startswith(f"{other}.") for other in left_out):
            continue
        found.add(name)
        waiting += imports(MODULES[name], typing=False)
        waiting += [name[:place] for place, letter in enumerate(name) if letter == "."]
    return {name for name in found if _does_something(MODULES[name])}


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _does_something(path: Path) -> bool:
    body = _parse(path).body
    return any(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in body)
