"""Fetch the patches of a mail thread with b4, the tool that kernel developers use for this."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from harness.errors import MachineryError, UsageError
from harness.host.packages import find_command
from harness.host.process import check_room, run

_TIMEOUT_S = 300.0
_WORDS_MAX = 120


def fetch(message_id: str, folder: Path) -> Path:
    """Write the newest version of the series to which a mail belongs as an mbox, and return its path.

    :param message_id: of any mail of the thread, or its address in a public-inbox archive.
    :raises UsageError: this is not a message id.
    :raises MachineryError: b4 is not installed, or finds no patches; the message has b4's own words.
    """
    if message_id.startswith("-") or "@" not in message_id:
        raise UsageError(f"--b4 {message_id!r}; expected a message id, such as 20261126.1234-1-name@example.com")
    b4 = find_command("b4") or shutil.which("b4", path=str(Path(sys.executable).parent))
    if b4 is None:
        raise MachineryError("--b4 needs b4; install it with: pip install 'hugepfn[b4]' (or Debian's package b4)")
    done = run(
        [b4, "am", "-T", "-o", "-", message_id], timeout_s=_TIMEOUT_S, check=False
    )  # to stdout, without trailers
    if done.status or not done.stdout.strip():
        check_room(done, "b4")
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise MachineryError(
            f"b4 has no patches for {message_id}: {said[-1][:_WORDS_MAX]}; check the message id, and that this host "
            "reaches the archive; if it does not, save the thread elsewhere and use --mbox FILE"
        )
    mbox = folder / "series.mbox"
    mbox.write_bytes(done.stdout)
    return mbox
