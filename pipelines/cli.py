"""The frame of every command: options, exit codes, and one line for each error that a user can correct."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from pipelines.environment import tracking_environment
from qdformer.config.base import SettingsError
from qdformer.config.settings import Settings, load_settings
from qdformer.utils.digests import short_digest
from qdformer.utils.errors import InputError, TransientError

SETTINGS_DIGEST = "QDFORMER_SETTINGS_DIGEST"
"""Environment variable: a workspace, and the `settings_digest` of the run that is at work there."""
FAILED, BAD_SETTINGS, TRANSIENT, INTERRUPTED = 1, 2, 75, 130


class CommandError(RuntimeError):
    """A part of the pipeline did not start or failed; `message` tells the user, `exit_code` ends the command."""

    exit_code = FAILED

    @property
    def message(self) -> str:
        return str(self)


def preset_parser(description: str | None = None, add_help: bool = True) -> argparse.ArgumentParser:
    """A parser with the option `--data`, which names a preset."""
    parser = argparse.ArgumentParser(description=description, add_help=add_help)
    parser.add_argument("--data", default="", help="a preset in pipelines/presets/ (default: params.yaml as it is)")
    return parser


def stage_main(run: Callable[[Settings], None]) -> NoReturn:
    """Run one stage with the `params.yaml` of the working directory and exit as `command_main` does."""
    os.environ.update(tracking_environment())

    def run_with_settings() -> None:
        settings = load_settings()
        workspace, _, expected = os.environ.get(SETTINGS_DIGEST, "").rpartition(" ")
        if workspace == os.getcwd() and expected != settings_digest(settings):
            raise SettingsError("params.yaml was edited after this run began; run the same command again")
        run(settings)

    command_main(run_with_settings)


def settings_digest(settings: Settings) -> str:
    """Names the values of the settings, whatever their comments and layout in the file."""
    return short_digest([settings.model_dump_json()])


def command_main(run: Callable[[], object]) -> NoReturn:
    """Run a command and exit.

    The exit code is 2 for settings that are not valid, 1 for input that is not usable (one line says which), 75
    (EX_TEMPFAIL) if something outside of this machine does not answer, and 130 for Ctrl-C. An error of the program
    itself keeps its traceback.
    """
    try:
        run()
    except SettingsError as error:
        _fail(BAD_SETTINGS, f"error: {error}")
    except CommandError as error:
        _fail(error.exit_code, f"error: {error.message}")
    except TransientError as error:
        _fail(TRANSIENT, f"error: {error}")
    except (InputError, OSError) as error:
        _fail(FAILED, f"error: {error}")
    except KeyboardInterrupt:
        _fail(INTERRUPTED, "interrupted: run the same command again to continue")
    sys.exit(0)


def _fail(code: int, message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)
