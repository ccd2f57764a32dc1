"""QEMU's own sandbox: seccomp filters that take system calls away from it which no machine of ours needs.

A guest that breaks into QEMU through a device then cannot start programs, get other privileges, or change its
scheduling. What a QEMU has of this is tried, because it may be built without seccomp, and so may the host's kernel.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import subprocess
from pathlib import Path

from harness.errors import MachineryError
from harness.host import cache
from harness.qemu.binary import QemuBinary

_LOG = logging.getLogger("hugepfn.qemu")
_KIND = "sandbox"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DEADLINE_S = 20.0
#: The best first (qemu-options.hx). hugepfn sets nothing of a running QEMU from within: setpriv runs before it, state
#: is saved to a descriptor and not to a program, and gdb connects to a socket that QEMU itself opens.
_WANTED = ("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", "on")


@functools.cache
def sandbox_args(binary: QemuBinary) -> tuple[str, ...]:
    """Return the arguments for the strictest sandbox that this QEMU has on this host; none if it has none.

    The answer is kept until the host reboots, or the file of QEMU changes. A busy host on which QEMU did not answer in
    time is no such answer: the next process asks again.
    """
    note = _note(binary)
    known = (cache.read_note(note) or {}).get("wanted")
    if known in (*_WANTED, ""):
        return _args(known)
    try:
        wanted = next((one for one in _WANTED if _accepts(binary, one)), "")
    except (OSError, subprocess.TimeoutExpired) as error:
        _LOG.warning("QEMU runs without a sandbox, because it could not be asked for one: %s", error)
        return ()
    with contextlib.suppress(MachineryError):  # a cache that cannot be written is reported by whoever needs it
        cache.write_note(note, {"wanted": wanted})
    return _args(wanted)


def _args(wanted: str) -> tuple[str, ...]:
    return ("-sandbox", wanted) if wanted else ()


def _note(binary: QemuBinary) -> Path:
    status = Path(binary.path).stat()
    parts = (binary.path, binary.package, str(status.st_size), str(status.st_mtime_ns), _BOOT_ID.read_text())
    return cache.root() / _KIND / f"{hashlib.sha256('|'.join(parts).encode()).hexdigest()[:32]}.json"


def _accepts(binary: QemuBinary, wanted: str) -> bool:
    argv = [binary.path, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-monitor", "stdio"]
    argv += ["-machine", "none", *_args(wanted)]
    done = subprocess.run(argv, input=b"quit\n", capture_output=True, timeout=_DEADLINE_S, check=False)
    return done.returncode == 0
