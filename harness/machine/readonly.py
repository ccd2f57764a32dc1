"""Becomes another program, in a view of the file system in which nothing can be written: ``readonly.py PROGRAM ARG...``

A mount namespace of its own, private, with every mount in it read-only; that takes root. Run as a file, since whatever
it imports is paid for with every machine.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CLONE_NEWNS = 0x20000  # include/uapi/linux/sched.h
_SYS_MOUNT_SETATTR = 442  # Linux 5.12
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MS_PRIVATE = 1, 1 << 18


class _MountAttr(ctypes.Structure):
    """struct mount_attr of include/uapi/linux/mount.h."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


def enter() -> None:
    """From here on, this process and its children can write to no file system.

    :raises OSError: the kernel does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def check(result: int, what: str) -> None:
        if result != 0:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    check(libc.unshare(_CLONE_NEWNS), "unshare")
    attributes = _MountAttr(_MOUNT_ATTR_RDONLY, 0, _MS_PRIVATE, 0)
    size = ctypes.sizeof(attributes)
    answer = libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.byref(attributes), size)
    check(answer, "mount_setattr")


if __name__ == "__main__":
    try:
        enter()
        os.execv(sys.argv[1], sys.argv[1:])
    except OSError as error:
        sys.exit(f"cannot serve the host's files read-only: {error}")
