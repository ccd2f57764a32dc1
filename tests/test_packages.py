"""Tests for the table of packages: what doctor says and scripts/setup installs on several distributions."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import doctor
from harness.errors import MachineryError
from harness.host import packages
from harness.host.packages import Manager, Part
from harness.kernel import Kernel, default_kernel
from harness.kernel.folder import HostSource

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(__file__).parent / "data/distributions"
NAMES = sorted(path.stem for path in DATA.glob("*.txt"))
COREUTILS = ("dirname", "cat", "head", "env", "sh")
# As gcc does: prints a library's path in Debian's multiarch folder, Fedora's lib64 or Arch's lib, or its bare name.
GCC = """\
#!/bin/sh
case $1 in
-print-file-name=*) name=${1#*=}
	for path in ROOT/usr/lib/x86_64-linux-gnu/$name ROOT/usr/lib64/$name ROOT/usr/lib/$name; do
		[ -e "$path" ] && echo "$path" && exit 0
	done
	echo "$name" ;;
-fsyntax-only) [ -e "ROOT/usr/include/$3" ] ;;
esac
"""
#: The packages that doctor names before anything is installed, by the distribution's names.
RUNNING = {
    "debian-13": "qemu-system-x86 gcc binutils libc6-dev kmod busybox-static dropbear-bin",
    "ubuntu-24.04": "qemu-system-x86 gcc binutils libc6-dev kmod busybox-static dropbear-bin",
    "fedora-42": "qemu-system-x86-core gcc binutils glibc-static kmod util-linux busybox dropbear",
    "opensuse-tumbleweed": "qemu-x86 gcc binutils glibc-devel-static kmod busybox-static dropbear",
    # libc.a and gelf.h are present, but without a compiler that cannot be found out
    "arch": "qemu-system-x86 gcc binutils glibc busybox dropbear",
}
BUILDING = {
    "debian-13": "make flex bison bc git xz-utils libelf-dev",
    "ubuntu-24.04": "make flex bison bc git xz-utils libelf-dev",
    "fedora-42": "make flex bison bc git xz elfutils-libelf-devel",
    "opensuse-tumbleweed": "make flex bison bc git libelf-devel",
    "arch": "make flex bison bc diffutils git libelf",
}
COMMANDS = {
    "debian-13": "apt-get install --no-install-recommends",
    "ubuntu-24.04": "apt-get install --no-install-recommends",
    "fedora-42": "dnf install --setopt=install_weak_deps=False",
    "opensuse-tumbleweed": "zypper install --no-recommends",
    "arch": "pacman -S --needed",
}


@dataclass
class Image:
    """A distribution's image in a folder: its files, and packages that add more files."""

    name: str
    root: Path
    os_release: str = ""
    packages: dict[str, list[str]] = field(default_factory=dict)

    def unpack(self) -> None:
        sections: dict[str, list[str]] = {}
        for line in (DATA / f"{self.name}.txt").read_text().splitlines()[1:]:
            if line.startswith("["):
                lines = sections.setdefault(line.strip("[]"), [])
            else:
                lines.append(line)
        self.os_release = "\n".join(sections["os-release"])
        rows = (row.partition(": ") for row in sections["packages"])
        self.packages = {name: files.split() for name, _, files in rows}
        self.add(*sections["image"])
        (self.root / "etc").mkdir()
        (self.root / "etc/os-release").write_text(self.os_release + "\n")

    def add(self, *files: str) -> None:
        for file in files:
            path = self.root / file.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(GCC.replace("ROOT", str(self.root)) if path.name == "gcc" else "#!/bin/sh\n")
            path.chmod(0o755)

    def install(self, names: list[str]) -> None:
        """Install packages as the package manager does. A name that the distribution does not have is an error."""
        for name in names:
            self.add(*self.packages[name])


@pytest.fixture(params=NAMES)
def image(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image:
    image = Image(request.param, tmp_path / "root")
    image.unpack()
    monkeypatch.setenv("PATH", str(image.root / "usr/bin"))
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HUGEPFN_QEMU", raising=False)
    monkeypatch.setattr(packages, "_SBIN", str(image.root / "usr/sbin"))
    monkeypatch.setattr(packages, "_OS_RELEASE", (image.root / "etc/os-release",))
    elsewhere = {name: tuple(f"{image.root}{place}" for place in at) for name, at in packages._ELSEWHERE.items()}
    monkeypatch.setattr(packages, "_ELSEWHERE", elsewhere)
    monkeypatch.setattr(doctor, "find_qemu", lambda _asked: SimpleNamespace(package="QEMU emulator version 9.2"))
    monkeypatch.setattr(doctor, "kvm_proof", lambda *_: SimpleNamespace(works=True, reason=""))
    monkeypatch.setattr(doctor, "_RAM_MIB", 0)
    return image


def missing() -> list[str]:
    return packages.translated(doctor.examine()[1])


def test_doctor_names_this_distributions_packages_and_then_passes(image: Image) -> None:
    findings, wanted = doctor.examine()
    assert not all(finding.fine for finding in findings if finding.required)
    expected = f"{RUNNING[image.name]} {BUILDING[image.name]}".split()
    assert sorted(packages.translated(wanted)) == sorted(expected)
    sudo = "" if os.geteuid() == 0 else "sudo "
    assert packages.mending_command(wanted).startswith(f"{sudo}{COMMANDS[image.name]} qemu")
    image.install(missing())
    findings, wanted = doctor.examine()
    assert wanted == []
    assert [finding for finding in findings if finding.required and not finding.fine] == []
    if "virtiofsd" in image.packages:
        image.install(["virtiofsd"])
        assert str(packages.find_command("virtiofsd")).endswith(image.packages["virtiofsd"][0])


def test_messages_name_this_distributions_command(image: Image) -> None:
    wanted = {"apt": "libelf-dev", "dnf": "elfutils-libelf-devel", "zypper": "libelf-devel", "pacman": "libelf"}
    chosen = packages.manager()
    assert chosen is not None
    assert packages.how_to_install(["libelf-dev"]).endswith(f" {wanted[chosen.value]}")
    assert packages.how_to_install(["libelf-dev"]).startswith(COMMANDS[image.name].split()[0])


@pytest.mark.usefixtures("image")
def test_without_apt_the_error_says_what_to_do() -> None:
    with pytest.raises(MachineryError, match="apt-config is missing on this host; ") as caught:
        Kernel.parse("debian:6.12").resolve()
    if packages.manager() is Manager.APT:
        assert str(caught.value).endswith("install it with: apt-get install apt")
    else:
        assert str(caught.value).endswith("use --kernel host, the path of a kernel, or tree:PATH")


def test_the_default_kernel_is_the_hosts_except_on_debian(image: Image) -> None:
    if image.name == "debian-13":
        assert default_kernel().spec == "debian"
    else:  # no apt, or (Ubuntu) an apt-get whose sources name no Debian mirror: the stub prints nothing
        assert default_kernel().source == HostSource()


@pytest.mark.parametrize("argument", ["", "tests"])
def test_setup_installs_the_packages_that_doctor_names(image: Image, tmp_path: Path, argument: str) -> None:
    log = run_setup(image, tmp_path, argument)
    parts = [Part.VENV, Part.RUN, Part.MIRROR, Part.GUEST, Part.FASTER, *([Part.BUILD, Part.TESTS] if argument else [])]
    needs = [need for need in packages.needs(*parts) if not (image.root / "usr/bin" / need.name).exists()]
    names = [need for need in needs if not (image.root / "usr/sbin" / need.name).exists()]
    command, *options = COMMANDS[image.name].split()
    assert log[0] == command
    yes = "--noconfirm" if command == "pacman" else "-y"
    assert log[1 : 2 + len(options)] == [options[0], yes, *options[1:]]
    assert sorted(log[2 + len(options) :]) == sorted(packages.translated(need.package for need in names))
    assert set(RUNNING[image.name].split()) <= set(log)


def run_setup(image: Image, tmp_path: Path, argument: str) -> list[str]:
    """Run setup, and return the arguments for the package manager, which then fails, so that setup ends there."""
    tree = tmp_path / "tree"
    (tree / "scripts").mkdir(parents=True)
    (tree / "harness/host").mkdir(parents=True)
    text = (ROOT / "scripts/setup").read_text()
    text = text.replace("/etc/os-release", f"{image.root}/etc/os-release").replace(
        "/usr/sbin:/sbin", f"{image.root}/usr/sbin"
    )
    (tree / "scripts/setup").write_text(text)
    (tree / "harness/host/packages.tsv").write_bytes((ROOT / "harness/host/packages.tsv").read_bytes())
    image.add("/usr/bin/id")
    (image.root / "usr/bin/id").write_text("#!/bin/sh\necho 0\n")
    for name in COREUTILS:
        (image.root / "usr/bin" / name).symlink_to(
            next(p for p in map(Path, (f"/usr/bin/{name}", f"/bin/{name}")) if p.exists())
        )
    manager = COMMANDS[image.name].split()[0]
    stub = f'#!/bin/sh\n[ "$1" != update ] || exit 0\necho "{manager} $*" >{tmp_path}/log\nexit 1\n'
    (image.root / "usr/bin" / manager).write_text(stub)
    env = {"PATH": str(image.root / "usr/bin")}
    argv = ["/bin/sh", str(tree / "scripts/setup"), *([argument] if argument else [])]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert f"{manager}" in done.stderr
    return (tmp_path / "log").read_text().split()


def test_an_unknown_distribution_gets_debians_names(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    (image.root / "etc/os-release").write_text("ID=frobix\nID_LIKE=\n")
    assert packages.manager() is None
    assert packages.how_to_install(["kmod"]) == "your package manager (in Debian: kmod)"
    monkeypatch.setattr(packages, "_OS_RELEASE", (image.root / "nowhere",))
    assert packages.manager() is None
    assert packages.distribution() == ""


def test_the_table_is_complete() -> None:
    """Every requirement of an installed part has a package on every distribution."""
    everywhere = packages.needs(Part.RUN, Part.VENV, Part.GUEST, Part.BUILD, Part.LLVM, Part.TESTS)
    assert [need.name for need in everywhere if set(need.packages) != set(Manager)] == []
