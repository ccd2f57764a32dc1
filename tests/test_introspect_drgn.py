"""Tests for what drgn is given, without a guest: offsets from DWARF, symbols from kallsyms."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import PremiseNotMet
from harness.introspect.drgn_program import KallsymsFinder, note_data
from harness.introspect.dwarf import dwarf_offset, import_drgn
from harness.introspect.tasks import TaskOffsets
from harness.kernel.elf import Elf, build_id, symbols_as_elf

SOURCE = """
struct signal_struct { long live; struct { void *next, *prev; } thread_head; };
struct mm_struct { struct { int count; void *pgd; }; };
struct task_struct {
    unsigned flags; struct { void *next, *prev; } tasks; struct mm_struct *mm; int pid, tgid;
    struct signal_struct *signal; struct { void *next, *prev; } thread_node; char comm[16];
};
struct task_struct init_task; struct mm_struct init_mm; struct signal_struct init_signals;
"""


def compiled(folder: Path, *flags: str) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    source, elf = folder / "kernel.c", folder / "kernel.elf"
    source.write_text(SOURCE)
    argv = [
        "gcc",
        *flags,
        "-nostdlib",
        "-static",
        "-Wl,-e,0,--build-id=0x0123456789abcdef",
        str(source),
        "-o",
        str(elf),
    ]
    subprocess.run(argv, check=True)
    return elf


def test_offsets_out_of_dwarf(tmp_path: Path) -> None:
    pytest.importorskip("drgn")
    offsets = TaskOffsets.of(dwarf_offset(compiled(tmp_path, "-g")))
    assert offsets == TaskOffsets(
        tasks=8, pid=32, tgid=36, comm=64, flags=0, mm=24, signal=40, thread_node=48, thread_head=8, pgd=8
    )
    with pytest.raises(PremiseNotMet, match=r"no task_struct\.nothing"):
        dwarf_offset(tmp_path / "kernel.elf")("task_struct.nothing")


def test_a_file_without_dwarf_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("drgn")
    with pytest.raises(PremiseNotMet, match="no debug information"):
        dwarf_offset(compiled(tmp_path))


def test_the_contents_of_an_elf_file(tmp_path: Path) -> None:
    elf = Elf(compiled(tmp_path, "-g").read_bytes(), "it")
    assert elf.has_section(".debug_info")
    assert not elf.has_section(".BTF")
    assert elf.symbols()["init_task"] > 0
    assert elf.build_id() == bytes.fromhex("0123456789abcdef")
    assert not Elf(compiled(tmp_path).read_bytes(), "it").has_section(".debug_info")


def test_symbols_as_an_elf_file() -> None:
    functions, data = {"_text": 0xFFFFFFFF81000000, "schedule": 0xFFFFFFFF81100000}, {"init_task": 0xFFFFFFFF82000000}
    elf = Elf(symbols_as_elf(functions, data), "it")
    assert elf.symbols() == functions | data
    assert [section.name for section in elf.sections] == ["", ".text", ".symtab", ".strtab", ".strtab"]


def test_notes() -> None:
    def note(name: bytes, kind: int, data: bytes) -> bytes:
        padded = [part + bytes(-len(part) % 4) for part in (name, data)]
        return struct.pack("<III", len(name), len(data), kind) + b"".join(padded)

    other, wanted = note(b"Linux\0", 0x100, b"x"), note(b"GNU\0", 3, b"\x01\x02\x03")
    assert build_id(other + wanted) == b"\x01\x02\x03"
    assert build_id(other) is build_id(b"") is build_id(b"\xff" * 30) is None
    assert note_data(note(b"VMCOREINFO\0", 0, b"OSRELEASE=1\n")) == b"OSRELEASE=1\n"


def test_symbols_out_of_kallsyms() -> None:
    drgn = pytest.importorskip("drgn")
    text = (
        b"0000000000000010 A per_cpu_start\nffffffff81000000 T _text\nffffffff81000000 T startup\n"
        b"ffffffff81000200 t helper\nffffffff81000300 D data\nffffffffc0000000 t of_a_module\t[m]\n"
    )
    find = KallsymsFinder(drgn, text)
    assert [(one.name, one.address, one.size) for one in find(None, "startup", None, True)] == [
        ("startup", 0xFFFFFFFF81000000, 0x200)
    ]
    assert {one.name for one in find(None, None, 0xFFFFFFFF81000010, False)} == {"_text", "startup"}
    assert [one.name for one in find(None, None, 0xFFFFFFFF81000210, True)] == ["helper"]
    assert find(None, "helper", 0xFFFFFFFF81000000, False) == []
    assert find(None, "of_a_module", None, False) == find(None, "per_cpu_start", None, False) == []
    assert find(None, None, 0x1000, False) == find(None, "nothing", None, True) == []
    assert len(find(None, None, None, False)) == 4
    assert KallsymsFinder(drgn, b"")(None, None, 5, True) == []


def test_without_drgn_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "drgn", None)
    with pytest.raises(PremiseNotMet, match=r"pip install 'hugepfn\[drgn\]'"):
        import_drgn()
