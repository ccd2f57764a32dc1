"""The start of the command. From the first import on, Ctrl-C or a failing import ends it with one line."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import NoReturn

from harness.host.signals import handle, ignore_ending

# From harness.errors.ExitCode, which is not imported yet.
_MACHINERY, _STOP, _INTERRUPTED = 3, 128, 130

#: New objects between two garbage collections. The imports make a hundred thousand objects that stay until the end.
#: Looking through them after every 700 (Python's default) took 70 ms of the 1.2 s of `run fork --level pud`, and after
#: every 50,000 still 30 ms.
_GC_THRESHOLD = 200_000


def _leave(_number: int, _frame: object) -> None:
    _end("interrupted", _INTERRUPTED)


def _end(words: str, status: int) -> NoReturn:
    """End at once: nothing was started yet, so there is nothing to clean up."""
    try:
        os.write(2, f"hugepfn: {words}\n".encode())
    finally:
        os._exit(status)


def main() -> NoReturn:
    """Run the command ``hugepfn``."""
    handle(signal.SIGINT, _leave)
    gc.set_threshold(_GC_THRESHOLD)
    try:
        from harness.outputs import hold_descriptors

        hold_descriptors()
        from harness.cli import main as run
    except Exception as error:
        status = _STOP if sys.argv[1:2] == ["check"] else _MACHINERY  # git takes 3 for a bad commit
        _end(f"it cannot start: {type(error).__name__}: {error}; install it again with scripts/setup", status)

    handle(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    finally:
        ignore_ending()


if __name__ == "__main__":
    main()
