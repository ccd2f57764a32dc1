#!/usr/bin/env python3
"""QEMU with a guest that floods its console: 100 MB from QEMU's end of the channel, beside what the guest prints.

The UART of a guest under TCG takes minutes for that, whatever the host does with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys

FLOOD_BYTES = 100 << 20
_LINE = b"[    1.000000] flood: " + b"f" * 80 + b"\n"


def main(argv: list[str]) -> None:
    """Becomes QEMU, after it has started a child that floods."""
    console = re.search(r"id=console,fd=(\d+)", " ".join(argv))
    if console is not None and os.fork() == 0:
        many = _LINE * 1000
        with contextlib.suppress(OSError), os.fdopen(int(console[1]), "wb", 0) as file:
            for _ in range(FLOOD_BYTES // len(many) + 1):
                file.write(many)
        os._exit(0)
    os.execvp("qemu-system-x86_64", ["qemu-system-x86_64", *argv])


if __name__ == "__main__":
    main(sys.argv[1:])
