"""Becomes another program, with a view of this host's files for a guest: ``readonly.py COVER MODE PROGRAM ARG...``

In a new mount namespace, a read-only copy of the whole tree of mounts is mounted over the folder COVER. In this copy,
special file systems (proc, sysfs, devtmpfs, cgroup, ...) and all of /proc, /sys, /dev and /run are empty, so a guest
that gets below its overlay finds nothing of the running host. PROGRAM serves COVER, and sees the host unchanged
elsewhere. With MODE "all", PROGRAM cannot write to any file; with "view", it only cannot write to COVER.

Without root, it uses a user namespace. It is run as a file, because each import delays the start of every machine.
"""

from __future__ import annotations

import ctypes
import os
import re
import stat
import sys

# include/uapi/linux/sched.h, mount.h, fcntl.h; the new mount calls have one number everywhere, Linux 5.2 and 5.12.
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MOUNT_ATTR_RDONLY, _MS_BIND, _MS_PRIVATE = 1, 1 << 12, 1 << 18
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8

#: Whatever they hold, a running system's own: the guest has its own.
_HIDDEN = ("/proc", "/sys", "/dev", "/run")
#: File systems of files. Any other type of mount is hidden, so one that nobody has thought of is.
_FILES = frozenset(
    (
        *("ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "f2fs", "zfs", "jfs", "reiserfs", "erofs", "squashfs"),
        *("vfat", "exfat", "ntfs", "ntfs3", "iso9660", "udf", "overlay", "aufs", "tmpfs", "ramfs", "rootfs"),
        *("nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "fuseblk", "fuse.sshfs", "fuse.fuse-overlayfs"),
        *("fuse.mergerfs", "fuse.bindfs", "fuse.zfs"),
    )
)


class _MountAttr(ctypes.Structure):
    """struct mount_attr of include/uapi/linux/mount.h."""

    _fields_ = [(name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd")]


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind, data)]
    _check(_libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3]), f"mount on {target}")


def _set_all(path: str, attributes: int, propagation: int = 0) -> None:
    """Sets attributes of a mount and of all below it."""
    wanted = _MountAttr(attributes, 0, propagation, 0)
    size = ctypes.c_size_t(ctypes.sizeof(wanted))
    answer = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), _AT_RECURSIVE, ctypes.byref(wanted), size)
    _check(answer, f"mount_setattr of {path}")


def special_mounts(mountinfo: str) -> list[str]:
    """Where something is mounted that a guest has no business with, each once, what is above before what is below.

    :param mountinfo: the text of /proc/PID/mountinfo (proc_pid_mountinfo(5)).
    """
    found = {os.path.realpath(place) for place in _HIDDEN}
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        place = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), before.split(" ")[4])
        if after.split(" ")[0] not in _FILES and place != "/":
            found.add(place)
    return sorted(one for one in found if not any(one.startswith(f"{other}/") for other in found))


def _own_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        _check(_libc.unshare(_CLONE_NEWNS), "unshare")
        return
    try:
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS), "unshare")
        for file, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{file}", "w") as map_file:  # noqa: PTH123 - pathlib is slow to import
                map_file.write(text)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror}; without root this takes a user namespace, which this host denies "
            "(sysctl kernel.unprivileged_userns_clone, kernel.apparmor_restrict_unprivileged_userns)",
        ) from error


def enter(cover: str, everything: bool) -> None:
    """From here on, COVER is the view, for this process and its children.

    :param everything: nothing outside the view can be written either.
    :raises OSError: the kernel does not allow it.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
        hidden = special_mounts(file.read())
    _own_namespaces()
    _set_all("/", 0, _MS_PRIVATE)
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    tree = _check(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, b"/", flags), "open_tree")
    words = (tree, b"", _AT_FDCWD, os.fsencode(cover), _MOVE_MOUNT_F_EMPTY_PATH)
    _check(_libc.syscall(_SYS_MOVE_MOUNT, *words), f"move_mount to {cover}")
    os.close(tree)
    for place in hidden:
        _hide(cover, place)
    _set_all("/" if everything else cover, _MOUNT_ATTR_RDONLY)


def _hide(cover: str, place: str) -> None:
    """Puts an empty folder over a place of the view, or an empty file."""
    target = cover + place
    try:
        mode = os.lstat(target).st_mode
    except (FileNotFoundError, PermissionError):
        return  # another mount lies over it; or the server, which runs as this user, cannot go there either
    if stat.S_ISDIR(mode):
        _mount("none", target, "tmpfs", _MS_NOSUID_NODEV_NOEXEC, "mode=0755")
    else:
        _mount(os.devnull, target, None, _MS_BIND)


if __name__ == "__main__":
    try:
        enter(sys.argv[1], sys.argv[2] == "all")
        os.execv(sys.argv[3], sys.argv[3:])
    except OSError as error:
        sys.exit(f"cannot serve the host's files read-only: {error}")
