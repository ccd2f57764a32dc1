"""Tests for recognising kernel files, their configuration and their modules folder. All files are made here."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.kernel import ImageKind, Kconfig, Kernel, open_image

RELEASE = "6.12.117+deb13-cloud-amd64"


def bzimage(release: str = RELEASE, *, protocol: int = 0x20F, xloadflags: int = 0x7F, pointer: int = 0x300) -> bytes:
    """The start of a bzImage as arch/x86/boot/header.S lays it out."""
    data = bytearray(0x1000)
    data[0x1FE:0x200] = b"\x55\xaa"
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x206, protocol)
    struct.pack_into("<H", data, 0x20E, pointer)
    struct.pack_into("<H", data, 0x236, xloadflags)
    text = f"{release} (somebody@somewhere) #1 SMP PREEMPT_DYNAMIC\0".encode()
    if pointer:
        data[0x200 + pointer : 0x200 + pointer + len(text)] = text
    return bytes(data)


def vmlinux(body: bytes, *, elf_type: int = 2, machine: int = 62) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", elf_type, machine) + bytes(44) + body


BANNER = b"junk\0Linux version 6.12.0-rc1 (me@here) (gcc) #1 SMP\n\0"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))


def put(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_the_release_of_a_bzimage(tmp_path: Path) -> None:
    image = open_image(put(tmp_path / "vmlinuz", bzimage()))
    assert (image.kind, image.release) == (ImageKind.BZIMAGE, RELEASE)
    assert (image.modules_dir, image.config, image.config_hash) == (None, None, None)


def test_the_release_and_embedded_configuration_of_a_vmlinux(tmp_path: Path) -> None:
    embedded = b"IKCFG_ST" + gzip.compress(b"CONFIG_VFIO=m\n", mtime=0) + b"IKCFG_ED"
    image = open_image(put(tmp_path / "vmlinux", vmlinux(BANNER + embedded)))
    assert (image.kind, image.release) == (ImageKind.VMLINUX, "6.12.0-rc1")
    assert image.config is not None
    assert image.config.get("VFIO") == "m"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"hello\n", "a text file"),
        (b"#!/bin/sh\n", "a script"),
        (gzip.compress(b"x", mtime=0), "a gzip file"),
        (b"!<arch>\ndebian-binary   ", "a Debian package"),
        (b"MZ" + bytes(600), "an EFI program"),
        (bytes(600), "no kernel"),
        (bzimage(protocol=0x20B), "a 32-bit bzImage"),
        (bzimage(xloadflags=0), "a 32-bit bzImage"),
        (bzimage(pointer=0), "without a version string"),
        (bzimage()[:0x210], "is truncated"),
        (vmlinux(BANNER, machine=183), "another architecture"),
        (vmlinux(BANNER, elf_type=1), "an object file or a module"),
        (vmlinux(BANNER, elf_type=3), "a program or shared library"),
        (vmlinux(b"no banner"), "without the words 'Linux version'"),
        (vmlinux(b"")[:30], "is truncated"),
    ],
)
def test_a_file_that_is_not_a_kernel_is_one_line(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Kernel.image(put(tmp_path / "file", data)).resolve()
    assert "expected an x86-64 bzImage or vmlinux" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bzimage_that_is_shorter_than_it_says_is_refused(tmp_path: Path) -> None:
    """setup_sects and syssize of the header; more may follow, such as a signature."""
    data = bytearray(bzimage())
    data[0x1F1] = 3
    struct.pack_into("<I", data, 0x1F4, (len(data) - 4 * 512) // 16)
    for whole in (data, data + b"signature"):
        assert open_image(put(tmp_path / "vmlinuz", bytes(whole))).release == RELEASE
    with pytest.raises(UsageError, match="truncated after 4095 bytes: its header announces 4096"):
        open_image(put(tmp_path / "vmlinuz", bytes(data[:-1])))
    struct.pack_into("<H", data, 0x206, 0x203)  # an old protocol, of which syssize has only 16 bits
    with pytest.raises(UsageError, match="a 32-bit bzImage"):
        open_image(put(tmp_path / "vmlinuz", bytes(data[:-1])))


def test_a_missing_file_a_directory_and_a_bare_version_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no such file"):
        Kernel.parse("./bzImage").resolve()
    with pytest.raises(UsageError, match=r"cannot read the kernel .*: Is a directory"):
        open_image(tmp_path)
    with pytest.raises(UsageError, match=r"written debian:6\.12"):
        Kernel.parse("6.12").resolve()


@pytest.mark.parametrize("layout", ["", "lib/modules/" + RELEASE, "usr/lib/modules/" + RELEASE])
def test_modules_may_be_the_folder_itself_or_a_root_above_it(tmp_path: Path, layout: str) -> None:
    kernel = put(tmp_path / "vmlinuz", bzimage())
    given = tmp_path / ("root" if layout else RELEASE)
    put(given / layout / "modules.dep", "")
    image = Kernel.parse(str(kernel), modules=given).resolve()
    assert image.modules_dir == given / layout


def test_modules_of_another_release_are_refused(tmp_path: Path) -> None:
    kernel = put(tmp_path / "vmlinuz", bzimage())
    put(tmp_path / "lib/modules/6.1.0/modules.dep", "")
    for given in (tmp_path, tmp_path / "lib/modules/6.1.0"):
        with pytest.raises(UsageError, match=rf"has modules of 6\.1\.0, but the kernel's release is {RELEASE[:4]}"):
            open_image(kernel, modules=given)
    with pytest.raises(UsageError, match="no such directory"):
        open_image(kernel, modules=tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no modules"):
        open_image(kernel, modules=tmp_path / "empty")


@pytest.mark.parametrize(
    ("kernel", "config"),
    [
        (f"boot/vmlinuz-{RELEASE}", f"boot/config-{RELEASE}"),
        ("modules/vmlinuz", "modules/config"),
        ("tree/arch/x86/boot/bzImage", "tree/.config"),
        ("tree/bzImage", "tree/.config"),
    ],
)
def test_the_configuration_is_found_beside_the_image(tmp_path: Path, kernel: str, config: str) -> None:
    put(tmp_path / config, "CONFIG_PCI=y\n")
    image = open_image(put(tmp_path / kernel, bzimage()))
    assert image.config is not None
    assert image.config.is_builtin("PCI")


def test_the_key_depends_on_the_contents(tmp_path: Path) -> None:
    kernel = put(tmp_path / "vmlinuz", bzimage())
    module = put(tmp_path / "lib/modules" / RELEASE / "kernel/vfio.ko", "one")
    first = open_image(kernel, modules=tmp_path).key
    assert open_image(kernel, modules=tmp_path).key == first
    assert open_image(kernel).key != first
    os.utime(module, ns=(1, 1))
    second = open_image(kernel, modules=tmp_path).key
    assert second != first
    kernel.write_bytes(bzimage() + b"x")
    assert open_image(kernel, modules=tmp_path).key != second


def test_the_image_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = put(tmp_path / "vmlinuz", bzimage())
    first = open_image(kernel).key

    def refuse(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr("hashlib.file_digest", refuse)
    assert open_image(kernel).key == first


def test_kconfig_values() -> None:
    config = Kconfig(
        'CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D="a \\"b\\" c"\nCONFIG_E=0x10\nCONFIG_F=""\n'
    )
    assert [config.get(s) for s in "ABCDEF"] == ["y", "m", None, 'a "b" c', "0x10", ""]
    assert config.is_set("CONFIG_B")
    assert not config.is_builtin("B")
    assert not config.is_set("C")
    assert len(config.sha256) == 64


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("debian", "debian"),
        ("debian:6.12", "debian:6.12"),
        ("debian:7.3-rc7@experimental", "debian:7.3~rc7@experimental"),
        ("debian@trixie-backports", "debian@trixie-backports"),
        ("debian:6.12.117-1~bpo12+1", "debian:6.12.117-1~bpo12+1"),
        ("./bzImage", "bzImage"),
        ("~/linux/a:b", "~/linux/a:b"),
        ("vmlinux", "vmlinux"),
    ],
)
def test_a_spec_parses_to_itself(text: str, spec: str) -> None:
    kernel = Kernel.parse(text)
    assert kernel.spec == str(kernel) == spec
    assert Kernel.parse(spec) == kernel


@pytest.mark.parametrize(
    "text", ["", "tree:", "debsrc:", "vng:6.12", "debian:", "debian:six", "debian:6.12@", "debian:6.12@A b", "deb:6"]
)
def test_an_invalid_spec_gets_a_list_of_valid_forms(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        Kernel.parse(text)


def test_modules_are_allowed_only_with_a_path() -> None:
    with pytest.raises(UsageError, match="has its own modules"):
        Kernel.parse("debian:6.12", modules="/lib/modules")
