"""Tests for a folder as a kernel, and for the running kernel: which image, modules and configuration are used."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.archive import apt
from harness.errors import MachineryError, UsageError
from harness.host import packages
from harness.kernel import Kernel, default_kernel, load_order, spec
from harness.kernel.folder import HostSource, open_folder
from tests.test_kernel_image import BANNER, RELEASE, bzimage, put, vmlinux

BUILT = "6.12.0-rc1"
#: depmod finds dependencies by symbols: one module exports them (EXPORT_SYMBOL's __ksymtab_strings), another uses them.
EXPORTS = 'int shared; const char name[] __attribute__((section("__ksymtab_strings"))) = "shared";\n'
USES = "extern int shared; int *used = &shared;\n"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An O= folder after `make`: vmlinux, then bzImage."""
    folder = tmp_path / "out"
    put(folder / "vmlinux", vmlinux(BANNER))
    put(folder / "arch/x86/boot/bzImage", bzimage(BUILT))
    put(folder / ".config", "CONFIG_VFIO=m\n")
    os.utime(folder / "vmlinux", ns=(1, 1))
    return folder


def compile_module(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    words = ["gcc", "-x", "c", "-fno-pic", "-mcmodel=kernel", "-c", "-o", str(path), "-"]
    subprocess.run(words, input=source, text=True, check=True, timeout=60)


def test_a_build_tree_is_its_bzimage_and_its_configuration(tree: Path) -> None:
    kernel = Kernel.parse(str(tree)).resolve()
    assert (kernel.image, kernel.release) == (tree / "arch/x86/boot/bzImage", BUILT)
    assert (kernel.spec, kernel.modules_dir) == (str(tree), None)
    assert kernel.config is not None
    assert kernel.config.get("VFIO") == "m"


def test_a_build_tree_may_have_a_vmlinux_only(tree: Path) -> None:
    (tree / "arch/x86/boot/bzImage").unlink()
    assert open_folder(tree).image == tree / "vmlinux"


def test_a_bzimage_older_than_its_vmlinux_is_not_run(tree: Path) -> None:
    os.utime(tree / "arch/x86/boot/bzImage", ns=(0, 0))
    with pytest.raises(UsageError, match=r"arch/x86/boot/bzImage is older than vmlinux; run `make bzImage` there"):
        open_folder(tree)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize(("prefix", "suffix"), [("", ".o"), ("kernel/", ".ko")], ids=["since 6.3", "before"])
def test_the_modules_of_a_build_tree_load_as_they_were_built(tree: Path, prefix: str, suffix: str) -> None:
    compile_module(tree / "drivers/vfio/vfio.ko", EXPORTS)
    compile_module(tree / "drivers/vfio/pci/vfio-pci.ko", USES)
    names = ("drivers/vfio/pci/vfio-pci", "drivers/vfio/vfio", "fs/never/built")
    put(tree / "modules.order", "".join(f"{prefix}{name}{suffix}\n" for name in names))
    put(tree / "modules.builtin", "kernel/drivers/virtio/virtio_pci.ko\n")
    kernel = Kernel.parse(str(tree)).resolve()
    order = load_order(kernel, ["vfio_pci", "virtio_pci", "built"])
    assert [module.name for module in order] == ["vfio", "vfio_pci"]
    assert order[1].path.resolve() == tree / "drivers/vfio/pci/vfio-pci.ko"
    assert (order.builtin, order.missing) == (("virtio_pci",), ("built",))
    before = kernel.key
    compile_module(tree / "drivers/vfio/pci/vfio-pci.ko", f"{USES}int more = 1;\n")
    assert Kernel.parse(str(tree)).resolve().key != before, "a rebuilt module must change the key"


def test_given_modules_take_precedence(tree: Path, tmp_path: Path) -> None:
    put(tree / "modules.order", "drivers/vfio/vfio.o\n")
    put(tree / "drivers/vfio/vfio.ko", "no ELF")
    put(tmp_path / "root/lib/modules" / BUILT / "modules.dep", "")
    kernel = Kernel.parse(str(tree), tmp_path / "root").resolve()
    assert kernel.modules_dir == tmp_path / "root/lib/modules" / BUILT


@pytest.mark.parametrize(
    ("image", "config"),
    [
        ("vmlinuz", "config"),
        (f"vmlinuz-{RELEASE}", f"config-{RELEASE}"),
        (f"boot/vmlinuz-{RELEASE}", f"boot/config-{RELEASE}"),
        ("bzImage", ".config"),
        ("boot/vmlinuz", f"lib/modules/{RELEASE}/config"),
        (f"boot/vmlinuz-{RELEASE}", "config"),
    ],
)
def test_a_folder_with_image_configuration_and_modules(tmp_path: Path, image: str, config: str) -> None:
    folder = tmp_path / "kernel"
    put(folder / image, bzimage())
    put(folder / config, "CONFIG_VFIO=m\n")
    put(folder / "lib/modules" / RELEASE / "modules.dep", "")
    kernel = Kernel.parse(str(folder)).resolve()
    assert (kernel.image, kernel.modules_dir) == (folder / image, folder / "lib/modules" / RELEASE)
    assert kernel.config is not None
    assert kernel.config.get("VFIO") == "m"


def test_a_modules_folder_with_its_image_is_a_kernel_too(tmp_path: Path) -> None:
    """Fedora, openSUSE and Arch have /lib/modules/RELEASE/vmlinuz."""
    folder = tmp_path / RELEASE
    put(folder / "vmlinuz", bzimage())
    put(folder / "modules.dep", "")
    assert Kernel.parse(str(folder)).resolve().modules_dir == folder


def test_a_folder_without_a_kernel_lists_the_expected_files(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"has no kernel: expected one of arch/x86/boot/bzImage, vmlinuz, .*vmlinux in it$"
    ):
        Kernel.parse(str(tmp_path)).resolve()
    put(tmp_path / "Kconfig", "")
    with pytest.raises(UsageError, match=f"it is a kernel source: build it, or use tree:{tmp_path}$"):
        Kernel.parse(str(tmp_path)).resolve()


def test_a_folder_with_several_kernels_names_them(tmp_path: Path) -> None:
    put(tmp_path / "vmlinuz-6.1.0", bzimage("6.1.0"))
    put(tmp_path / "vmlinuz-6.12.0", bzimage("6.12.0"))
    with pytest.raises(UsageError, match=r"several kernels: vmlinuz-6\.1\.0, vmlinuz-6\.12\.0; give the path of one"):
        Kernel.parse(str(tmp_path)).resolve()


@pytest.mark.parametrize(
    ("image", "config"),
    [
        (f"boot/vmlinuz-{RELEASE}", f"boot/config-{RELEASE}"),  # Debian, Ubuntu, Fedora
        (f"usr/lib/modules/{RELEASE}/vmlinuz", f"usr/lib/modules/{RELEASE}/config"),  # openSUSE, Fedora
        (f"lib/modules/{RELEASE}/vmlinuz", "proc/config.gz"),  # Arch
    ],
)
def test_the_running_kernel_is_found_where_distributions_have_it(tmp_path: Path, image: str, config: str) -> None:
    text = b"CONFIG_VFIO=m\n"
    put(tmp_path / image, bzimage())
    put(tmp_path / config, gzip.compress(text) if config.endswith(".gz") else text)
    put(tmp_path / "lib/modules" / RELEASE / "modules.dep", "")
    kernel = HostSource(tmp_path, RELEASE).resolve(None, offline=False)
    assert (kernel.spec, kernel.image, kernel.release) == ("host", tmp_path / image, RELEASE)
    assert kernel.modules_dir == tmp_path / "lib/modules" / RELEASE
    assert kernel.config is not None
    assert kernel.config.get("VFIO") == "m"


def test_without_an_image_of_the_running_kernel_the_places_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=rf"no image of the running kernel {re.escape(RELEASE)} .*looked for "
    ) as caught:
        HostSource(tmp_path, RELEASE).resolve(None, offline=False)
    for place in (f"boot/vmlinuz-{RELEASE}", f"lib/modules/{RELEASE}/vmlinuz", f"usr/lib/modules/{RELEASE}/vmlinuz"):
        assert str(tmp_path / place) in str(caught.value)


def test_an_image_that_only_root_may_read_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ubuntu's /boot/vmlinuz-* has mode 0600. root, who may run this test, can read it anyway."""
    image = put(tmp_path / "boot" / f"vmlinuz-{RELEASE}", bzimage())
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match=re.escape(f"only root may read {image}; run `sudo chmod a+r {image}`")):
        HostSource(tmp_path, RELEASE).resolve(None, offline=False)


def test_an_image_of_another_release_is_not_the_running_kernel(tmp_path: Path) -> None:
    put(tmp_path / f"boot/vmlinuz-{RELEASE}", bzimage("6.1.0"))
    with pytest.raises(UsageError, match=rf"is Linux 6\.1\.0, but the running kernel is {re.escape(RELEASE)}; reboot"):
        HostSource(tmp_path, RELEASE).resolve(None, offline=False)


def test_host_is_a_kernel_spec() -> None:
    assert Kernel.parse("host").source == HostSource()
    assert Kernel.parse("host").spec == "host"
    with pytest.raises(UsageError, match=r"host:6\.1' is not a kernel"):
        Kernel.parse("host:6.1")
    with pytest.raises(UsageError, match="has its own modules"):
        Kernel.parse("host", "/lib/modules")


@pytest.mark.parametrize(
    ("os_release", "has_apt", "mirror", "expected"),
    [
        ("ID=debian", True, True, "debian"),
        ("ID=fedora", False, False, "host"),
        ("ID=ubuntu\nID_LIKE=debian", True, False, "host"),
        ("ID=devuan\nID_LIKE=debian", True, True, "debian"),  # with apt sources that name a Debian mirror
    ],
)
def test_the_default_is_the_mirrors_kernel_or_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, os_release: str, has_apt: bool, mirror: bool, expected: str
) -> None:
    def sources() -> list[object]:
        if not mirror:
            raise MachineryError("names no Debian mirror")
        return [object()]

    monkeypatch.setattr(packages, "_OS_RELEASE", (put(tmp_path / "os-release", os_release + "\n"),))
    monkeypatch.setattr(spec, "find_command", lambda _name: "/usr/bin/apt-get" if has_apt else None)
    monkeypatch.setattr(apt, "mirror_sources", sources)
    assert default_kernel().spec == expected
