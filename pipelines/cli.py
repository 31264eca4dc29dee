"""What every stage's command line shares: settings in, one clear line and a non-zero code on failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from pipelines.workspace import tracking_environment
from qdformer.config.base import SettingsError
from qdformer.config.settings import Settings, load_settings
from qdformer.utils.errors import InputError

FAILED, BAD_SETTINGS, INTERRUPTED = 1, 2, 130


def stage_main(run: Callable[[Settings], None]) -> NoReturn:
    """Run one stage on `params.yaml` of the working directory and exit, as `command_main` does."""
    os.environ.update(tracking_environment())
    command_main(lambda: run(load_settings()))


def command_main(run: Callable[[], None]) -> NoReturn:
    """Run a command and exit.

    The code is 2 for unusable settings, 1 for unusable input (one line says which), 130 for Ctrl-C.
    A fault of the program itself keeps its traceback.
    """
    try:
        run()
    except SettingsError as error:
        _fail(BAD_SETTINGS, f"error: {error}")
    except (InputError, OSError) as error:
        _fail(FAILED, f"error: {error}")
    except KeyboardInterrupt:
        _fail(INTERRUPTED, "interrupted: the same command goes on from here")
    sys.exit(0)


def _fail(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
