"""The errors a person can cause or must hear about, each with the exit code that scripts read."""

from __future__ import annotations

import sys
from collections.abc import Callable

INTERRUPTED = 130


class HybridClipError(Exception):
    """Base of every error that ends a command with one line and an exit code, never a traceback."""

    exit_code = 1


class UserError(HybridClipError):
    """The user's input, config or data is wrong. The message names the file, row or field and the remedy."""

    exit_code = 2


class RunStopped(HybridClipError):
    """The run cannot go on: non-finite values, or stuck when told to stop."""

    exit_code = 3


class StorageError(HybridClipError):
    """A disk refused to give or take what the run needs."""

    exit_code = 4


def run_or_exit(function: Callable[[], int | None]) -> int:
    """Returns the function's exit code; an error of this module becomes one line on stderr and its code.

    So does what the system refuses (a full disk, a closed pipe: 4) and Ctrl-C (130, as shells have it).
    """
    try:
        return function() or 0
    except HybridClipError as error:
        message, code = str(error), error.exit_code
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        message, code = where + (error.strerror or str(error)), StorageError.exit_code
    except KeyboardInterrupt:
        message, code = "interrupted", INTERRUPTED
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
