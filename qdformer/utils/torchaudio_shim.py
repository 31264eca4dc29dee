"""Allow `import torchaudio` beside a CPU-only build of torch.

torchaudio's Linux wheel on PyPI links its compiled extension against CUDA. Beside a CPU-only torch the extension cannot
be loaded and `import torchaudio` raises an OSError, although everything that this project uses (resampling, mel
filters) is written in Python. transformers imports torchaudio as well and fails with it.

torchaudio has a state for "built without the extension". `install` registers a module in that state under the
extension's name. It runs the `version.py` of both packages and imports neither of them, so that `import qdformer` stays
fast.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import runpy
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

EXTENSION = "torchaudio._extension"


def install() -> None:
    """Register the module if torchaudio was built for CUDA and torch was not; otherwise do nothing."""
    if EXTENSION in sys.modules:
        return
    torch, torchaudio = version_of("torch"), version_of("torchaudio")
    if torch and torchaudio and torch["cuda"] is None and "+cu" in torchaudio["__version__"]:
        sys.modules[EXTENSION] = _without_extension()


def version_of(package: str) -> dict[str, Any]:
    """The variables of `version.py` of an installed package, which is not imported; empty if it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return {}
    return runpy.run_path(os.path.join(spec.submodule_search_locations[0], "version.py"))


def _without_extension() -> ModuleType:
    """What `torchaudio/_extension/__init__.py` holds when torchaudio was built without its extension."""
    module = ModuleType(EXTENSION, "torchaudio's compiled extension, which needs CUDA libraries, is not loaded.")
    attributes: dict[str, object] = {
        "_IS_TORCHAUDIO_EXT_AVAILABLE": False,
        "_IS_ALIGN_AVAILABLE": False,
        "fail_if_no_align": _unavailable,
    }
    vars(module).update(attributes)
    return module


def _unavailable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator of torchaudio's functions that need the extension: calling one raises a `RuntimeError`."""

    @functools.wraps(function)
    def fail(*arguments: object, **options: object) -> NoReturn:
        raise RuntimeError(f"torchaudio.{function.__name__} needs torchaudio's compiled extension, which needs CUDA")

    return fail
