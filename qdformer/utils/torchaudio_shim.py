"""Lets `import torchaudio` work beside a torch built without CUDA.

torchaudio's Linux wheel links its compiled extension against CUDA. On a CPU-only torch that
extension cannot be loaded, and `import torchaudio` fails, although everything used here
(resampling, mel scales) is written in Python; transformers imports torchaudio too and fails with
it. torchaudio does have a state for "built without the extension", so an import hook puts it into
that state when, and only when, the extension fails to load on a CPU-only torch.

The hook imports nothing by itself: `import qdformer` stays quick.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

EXTENSION = "torchaudio._extension"


class _TolerantLoader(SourceFileLoader):
    """Runs torchaudio's extension module; a missing CUDA library means "no extension"."""

    def exec_module(self, module: ModuleType) -> None:
        try:
            super().exec_module(module)
        except OSError:
            import torch
            from torchaudio._internal.module_utils import fail_with_message

            if torch.version.cuda is not None:
                raise  # a CUDA torch should have found its libraries: a real fault
            module._IS_TORCHAUDIO_EXT_AVAILABLE = False
            module._IS_ALIGN_AVAILABLE = False
            module.fail_if_no_align = fail_with_message("torchaudio's compiled extension needs CUDA")


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path=None, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != EXTENSION:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _TolerantLoader(spec.loader.name, spec.loader.path)
        return spec


def install() -> None:
    """Put the hook in front of the import system; doing it again changes nothing."""
    if not any(type(finder) is _Finder for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
