"""Report an unexpected error in one line, never as a traceback with Python's exit status 1."""

from __future__ import annotations

import errno
import os
import traceback
from pathlib import Path

from harness.errors import HugepfnError
from harness.outputs import NO_ROOM

_LIMITS = (errno.EMFILE, errno.ENFILE, errno.EAGAIN)


def explain(error: BaseException) -> str:
    """Return one line for any error: what happened, and what to do.

    The traceback of an error that is not a HugepfnError is kept in the cache folder, so that nobody must repeat an
    hour's run for it.
    """
    if isinstance(error, HugepfnError):
        return str(error)
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"this host is out of memory; end other programs, or use fewer --workers; {_kept(error)}"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return f"{error.filename or 'a file'} cannot be written: {error.strerror}; free some room"
    if isinstance(error, OSError) and error.errno in _LIMITS:
        limits = f"this host is at its limits: {error.strerror}; raise ulimit -n or -u, or end other programs"
        return f"{limits}; {_kept(error)}"
    if isinstance(error, FileNotFoundError) and _cwd_is_gone():
        return "the working directory was deleted; change to another one and start again"
    return f"a bug of hugepfn: {_short(error)}; {_kept(error)}"


def _short(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return " ".join(traceback.format_exception_only(error)[-1].split()) + where


def _kept(error: BaseException) -> str:
    """Return where the traceback was kept, or the traceback itself if it cannot be kept."""
    from harness.host import cache  # costs a sixth of the start of every command

    text = "".join(traceback.format_exception(error))
    try:
        path = cache.root() / "traceback.txt"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.write_text(text)
    except OSError:
        return f"its traceback:\n{text}"
    return f"its traceback is in {path}"


def _cwd_is_gone() -> bool:
    try:
        os.getcwd()  # noqa: PTH109
    except OSError:
        return True
    return False
