"""Where the command starts. Ctrl-C ends it with one line from the first import on."""

from __future__ import annotations

import os
import signal
from typing import NoReturn

from harness.signals import handle

_INTERRUPTED = 130


def _leave(_number: int, _frame: object) -> None:
    """Nothing has been started yet, so there is nothing to clean up."""
    os.write(2, b"hugepfn: interrupted\n")
    os._exit(_INTERRUPTED)


def main() -> NoReturn:
    """The command ``hugepfn``."""
    handle(signal.SIGINT, _leave)
    from harness.cli import main as run

    handle(signal.SIGINT, signal.default_int_handler)
    run()


if __name__ == "__main__":
    main()
