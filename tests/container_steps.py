"""Run the Containerfile's steps without podman, in a debootstrap with 64 MB of /dev/shm: `make container-steps`.

Not part of `make test`: it downloads a Debian and all packages, some 500 MB, from the mirror that this machine's apt is
set up for. It needs root and debootstrap. It uses one folder below /tmp and a mount namespace of its own.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from harness.archive.apt import mirror_sources
from harness.host.packages import mending_command

ROOT = Path(__file__).resolve().parents[1]
_INSIDE = "--inside"
#: Files with which this machine reaches its package indexes; a container gets that from its network. They are copied:
#: what packages write inside, such as the bundle of ca-certificates, must not reach this machine's own files.
_NETWORK = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/xdg/pip", "/usr/local/share/ca-certificates")
_WHEELS = "/opt"  # large, so it is mounted read-only instead of copied
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_IGNORED = (".venv", ".git", "*_cache", "__pycache__", ".hypothesis")
_KEPT = ("PIP_", "SSL_", "REQUESTS_", "http", "HTTP", "no_proxy")  # of the environment
_SHM_BYTES = 64 << 20


def steps(text: str) -> list[tuple[str, str]]:
    """The instructions of a Containerfile; lines that end in a backslash are joined."""
    joined = re.sub(r"\\\n", " ", text)
    lines = [line.strip() for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def copy(source: Path, target: Path) -> None:
    """Copy a file or folder into the root."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


def bind(source: Path, target: Path) -> None:
    """Mount a file or folder of this machine into the root."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    subprocess.run(["mount", "--bind", source.resolve(), target], check=True, timeout=60)


def prepare(root: Path) -> None:
    """Set up what podman would mount, and this machine's access to its mirrors."""
    subprocess.run(["mount", "-t", "proc", "proc", root / "proc"], check=True, timeout=60)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "dev", root / "dev"], check=True, timeout=60)
    for name in _DEVICES:
        bind(Path("/dev") / name, root / "dev" / name)
    (root / "dev/fd").symlink_to("/proc/self/fd")
    (root / "dev/shm").mkdir()
    options = f"mode=1777,size={_SHM_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "shm", root / "dev/shm"], check=True, timeout=60)
    for place in _NETWORK:
        if Path(place).exists():
            copy(Path(place), root / place.lstrip("/"))
    if Path(_WHEELS).is_dir():
        bind(Path(_WHEELS), root / _WHEELS.lstrip("/"))
        again = ["mount", "-o", "remount,bind,ro"]
        subprocess.run([*again, root / _WHEELS.lstrip("/")], check=True, timeout=60)


def run(root: Path, command: str, folder: str, user: str) -> None:
    """Run one step with a shell in the root."""
    print(f"container-steps: {user}: {command}", flush=True)
    home = "/root" if user == "root" else f"/home/{user}"
    env = {name: value for name, value in os.environ.items() if name.startswith(_KEPT)}
    env |= {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": home, "LC_ALL": "C.UTF-8"}
    argv = ["chroot", f"--userspec={user}", str(root), "/bin/sh", "-c", f"cd {shlex.quote(folder)} && {command}"]
    subprocess.run(argv, env=env, check=True, timeout=3600)


def inside(root: Path) -> None:
    """Run the steps, in a mount namespace that ends with this process."""
    prepare(root)
    folder, user = "/", "root"
    for word, rest in steps((ROOT / "Containerfile").read_text()):
        match word:
            case "RUN" | "CMD":
                run(root, rest, folder, user)
            case "WORKDIR":
                folder = rest
            case "USER":
                user = rest
            case "COPY":
                source, target = rest.split()
                ignored = shutil.ignore_patterns(*_IGNORED)
                shutil.copytree(ROOT / source, root / target.lstrip("/"), ignore=ignored, symlinks=True)
            case "FROM":
                pass
            case _:
                sys.exit(f"container-steps: the instruction {word} is not supported")


def debootstrap(root: Path, image: str) -> None:
    """A minimal Debian of the release that the Containerfile starts from."""
    suite = image.rpartition(":")[2].partition("-")[0]
    archive = next(archive for archive in mirror_sources() if not archive.is_security)
    print(f"container-steps: debootstrap of {suite} in {root}", flush=True)
    argv = ["debootstrap", "--variant=minbase", f"--keyring={archive.signed_by}", suite, str(root), archive.uri]
    subprocess.run(argv, check=True, timeout=3600, stdout=subprocess.DEVNULL)
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    text = f"Types: deb\nURIs: {archive.uri}\nSuites: {suite}\nComponents: main\nSigned-By: {keyring}\n"
    (root / "etc/apt/sources.list.d/debian.sources").write_text(text)


def main() -> None:
    """Make the root, and do the steps in it."""
    if sys.argv[1:2] == [_INSIDE]:
        inside(Path(sys.argv[2]))
        return
    if os.geteuid() != 0:
        sys.exit("container-steps: run it as root; chroot and mount need that")
    if shutil.which("debootstrap") is None:
        sys.exit(f"container-steps: debootstrap is missing; install with: {mending_command(['debootstrap'])}")
    image = dict(steps((ROOT / "Containerfile").read_text()))["FROM"]
    with tempfile.TemporaryDirectory(prefix="hugepfn-container-", dir="/tmp") as folder:
        root = Path(folder) / "root"
        debootstrap(root, image)
        argv = ["unshare", "--mount", "--pid", "--fork", "--kill-child", sys.executable, __file__, _INSIDE, str(root)]
        status = subprocess.run(argv, check=False, timeout=7200, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode
    print(f"container-steps: {'passed' if status == 0 else 'failed'}")
    sys.exit(status)


if __name__ == "__main__":
    main()
