"""What ``-v`` and ``-vv`` show on standard error: the loggers below "hugepfn". Nothing is shown by default.

``-v`` (INFO) shows QEMU's command lines, the start of machines, and what was in the cache. ``-vv`` (DEBUG) also shows
the parts of each cache key, and every step of a protocol with its time: requests to the agent, QMP commands,
checkpoints. The loggers are ordinary ones, so pytest's ``--log-cli-level`` and an application's handlers work, too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator

from harness.printable import printable

ROOT = "hugepfn"
_LEVELS = (logging.INFO, logging.DEBUG)
_VARIABLE = "HUGEPFN_LOG"  # tells a child its verbosity, and the descriptor for its log: "2:7"


class _Lines(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes one line per record, even if something has replaced sys.stderr (pytest, while a test runs)."""

    def __init__(self, verbosity: int, descriptor: int) -> None:
        self.verbosity = verbosity
        self.descriptor = os.dup(descriptor)
        super().__init__(os.fdopen(self.descriptor, "w", errors="backslashreplace"))

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line that is safe to print."""
        text = printable(super().format(record)).replace("\n", "\\n")
        return f"[{record.relativeCreated / 1000:9.3f} {record.name.removeprefix(f'{ROOT}.')}] {text}"

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore that the reader has gone; the command goes on to its verdict."""

    def close(self) -> None:
        """Close the descriptor."""
        with contextlib.suppress(OSError):
            self.stream.close()
        super().close()


_shown: list[_Lines] = []


def show(verbosity: int, descriptor: int = 2) -> None:
    """Show the log from now on.

    :param verbosity: 0: nothing; 1: INFO; 2 and more: DEBUG.
    :param descriptor: where to write.
    """
    hide()
    if verbosity < 1:
        return
    lines = _Lines(verbosity, descriptor)
    logger = logging.getLogger(ROOT)
    logger.addHandler(lines)
    logger.setLevel(_LEVELS[min(verbosity, len(_LEVELS)) - 1])
    _shown.append(lines)


def hide() -> None:
    """Show nothing from now on."""
    for lines in _shown:
        logging.getLogger(ROOT).removeHandler(lines)
        logging.getLogger(ROOT).setLevel(logging.NOTSET)
        lines.close()
    _shown.clear()


def verbosity() -> int:
    """Return how much is shown, see :func:`show`."""
    return _shown[0].verbosity if _shown else 0


def for_child() -> tuple[dict[str, str], tuple[int, ...]]:
    """Return the environment and the descriptors with which a child shows its log where this process does."""
    if not _shown:
        return dict(os.environ), ()
    lines = _shown[0]
    return {**os.environ, _VARIABLE: f"{lines.verbosity}:{lines.descriptor}"}, (lines.descriptor,)


def show_as_parent() -> None:
    """Show the log where the parent does, if it called :func:`for_child`."""
    said = os.environ.pop(_VARIABLE, "")
    with contextlib.suppress(ValueError, OSError):  # another program's variable, or a descriptor that is closed
        verbosity, descriptor = map(int, said.split(":"))
        show(verbosity, descriptor)
        if descriptor > 2:  # show() has duplicated it, and hide() must leave no descriptor of the parent open
            os.close(descriptor)


@contextlib.contextmanager
def timed(log: logging.Logger, what: str, *args: object, level: int = logging.DEBUG) -> Iterator[None]:
    """Log a step when it ends or fails, with the time that it took.

    :param what: a format of :meth:`logging.Logger.log`.
    """
    if not log.isEnabledFor(level):
        yield
        return
    begin = time.perf_counter()
    how = "failed after"
    try:
        yield
        how = "took"
    finally:
        log.log(level, f"{what}: %s %.1f ms", *args, how, (time.perf_counter() - begin) * 1000)
