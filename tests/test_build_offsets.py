"""Tests for the offsets that a build stores: a real compiler on small headers, and the reason if it finds none."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import MachineryError, PremiseNotMet
from harness.introspect.kernel_facts import KernelFacts
from harness.introspect.tasks import TaskOffsets
from harness.kernel.build.offsets import built_offsets, compile_words
from harness.kernel.image import ImageKind, KernelImage
from harness.kernel.offsets import KVM_MEMBERS, OFFSETS_FILE, TASK_MEMBERS, BuiltOffsets, find_offsets
from harness.kernel.vmlinux import Vmlinux

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")

HEADERS = {
    "mm_types": "struct mm_struct { struct { int count; void *pgd; }; };",
    "sched": """
#ifdef SHUFFLED
#define FIRST char padding[4096];
#else
#define FIRST
#endif
struct list_head { void *next, *prev; };
struct task_struct {
    FIRST
    unsigned flags; struct list_head tasks; void *mm; int pid, tgid; struct list_head thread_node;
    char comm[16]; void *signal;
#ifdef CONFIG_KVM_AMD
    void *files;
#endif
};""",
    "fdtable": "struct files_struct { int count; void *fdt; }; struct fdtable { unsigned max_fds; void **fd; };",
    "fs": "struct file { long mode; void *private_data; };",
    "kvm_host": """
struct kvm { long lock; void *mm; };
union role { unsigned word; };
struct kvm_mmu { void *vtable; struct { long pgd, hpa; } root; union role root_role; };
struct kvm_vcpu { struct kvm *kvm; struct { long regs; struct kvm_mmu root_mmu; } arch; };""",
    "sched/signal": "struct signal_struct { int live; struct list_head thread_head; };",
    "stddef": "#define offsetof(type, member) __builtin_offsetof(type, member)\n#warning a warning is no error here",
}
EXPECTED = {
    "task_struct.tasks": 8,
    "task_struct.pid": 32,
    "task_struct.tgid": 36,
    "task_struct.comm": 56,
    "task_struct.flags": 0,
    "task_struct.mm": 24,
    "task_struct.signal": 72,
    "task_struct.thread_node": 40,
    "signal_struct.thread_head": 8,
    "mm_struct.pgd": 8,
}
WITH_KVM = {
    **EXPECTED,
    "task_struct.files": 80,
    "files_struct.fdt": 8,
    "fdtable.max_fds": 0,
    "fdtable.fd": 8,
    "file.private_data": 8,
    "kvm.mm": 8,
    "kvm_vcpu.kvm": 0,
    "kvm_vcpu.arch.root_mmu.root.hpa": 32,
    "kvm_vcpu.arch.root_mmu.root_role": 40,
}
FLAGS = "-Wp,-MMD,kernel/.fork.o.d -nostdinc -I./include -Werror -Wall -flto -DNAME='\"a;b $(pound) $$x\"'"
TAIL = "-c -o kernel/fork.o /src/kernel/fork.c"
ID = bytes(range(20))


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    """An O= folder after a build, with headers and a vmlinux with a build ID. It has no saved command yet."""
    folder = tmp_path / "obj"
    for name, text in HEADERS.items():
        path = folder / f"include/linux/{name}.h"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "kernel").mkdir()
    argv = ["gcc", "-nostdlib", "-static", f"-Wl,--build-id=0x{ID.hex()},-e,0", "-x", "c", "/dev/null", "-o", "vmlinux"]
    subprocess.run(argv, cwd=folder, check=True, timeout=60)
    return folder


def save(objects: Path, command: str, prefix: str = "savedcmd") -> None:
    text = f"{prefix}_kernel/fork.o := {command}\n\nsource_kernel/fork.o := /src/kernel/fork.c\n"
    (objects / "kernel/.fork.o.cmd").write_text(text)


def ask(objects: Path) -> BuiltOffsets:
    return built_offsets(objects, {"PATH": "/usr/local/bin:/usr/bin:/bin"})


@pytest.mark.parametrize("prefix", ["savedcmd", "cmd"])
def test_the_saved_command_gives_the_offsets(objects: Path, prefix: str) -> None:
    save(objects, f"gcc {FLAGS}   {TAIL}   ; ./tools/objtool/objtool --orc kernel/fork.o", prefix)
    assert ask(objects) == BuiltOffsets(ID, EXPECTED)
    assert not list((objects / "kernel").glob("*.o")), "the kernel's own object was written"
    assert not list((objects / "kernel").glob(".*.d")), "the list of headers was written"


def test_the_offsets_depend_on_the_flags(objects: Path) -> None:
    """The order of a struct's members can depend on the flags in the saved command."""
    save(objects, f"gcc {FLAGS} -DSHUFFLED {TAIL}")
    assert ask(objects).bytes_to["task_struct.mm"] == 4096 + 24


@pytest.mark.parametrize("symbol", ["KVM_AMD", "KVM_AMD_MODULE", "KVM_INTEL", "KVM_INTEL_MODULE"])
def test_a_kernel_with_kvm_has_the_offsets_of_virtual_machines(objects: Path, symbol: str) -> None:
    save(objects, f"gcc {FLAGS} -DCONFIG_{symbol} -DCONFIG_KVM_AMD {TAIL}")
    assert ask(objects) == BuiltOffsets(ID, WITH_KVM)
    assert list(WITH_KVM) == [*TASK_MEMBERS, *KVM_MEMBERS]


def test_a_saved_command_is_split_as_the_shell_would() -> None:
    saved = f"savedcmd_kernel/fork.o := ccache gcc {FLAGS} -O2 {TAIL} && true\n"
    assert compile_words(saved) == [
        *("ccache", "gcc", "-nostdinc", "-I./include", "-Werror", "-Wall", "-flto", '-DNAME="a;b # $x"', "-O2"),
    ]


def test_a_missing_member_is_named(objects: Path) -> None:
    header = objects / "include/linux/sched.h"
    header.write_text(header.read_text().replace("*mm", "*memory"))
    save(objects, f"gcc {FLAGS} {TAIL}")
    found = ask(objects)
    assert (found.build_id, found.bytes_to) == (ID, {})
    assert "gcc ended with status 1: " in found.problem
    assert "no member named" in found.problem
    assert "\n" not in found.problem


def compiler(objects: Path, script: str) -> str:
    path = objects / "cc"
    path.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n{script}\n')
    path.chmod(0o755)
    return f"{path} -Wall {TAIL}"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (None, "kbuild saved no command for kernel/fork.o (No such file"),
        ("gcc 'never closed", "cannot be parsed: No closing quotation"),
        ("gcc", "cannot be parsed: 'savedcmd_kernel/fork.o := gcc'"),
        ("", "cannot be parsed"),
        (f"no-such-compiler -Wall {TAIL}", "cannot start no-such-compiler"),
        ("true", "cc ended with status 0: no message"),
        ("kill -9 $$", "cc ended with status -9: no message"),
        ('echo garbage >"$2"', "not a 64-bit little-endian ELF file"),
        ('gcc -c -o "$2" -x c /dev/null', "expected 80 bytes in the section .hugepfn_offsets"),
    ],
)
def test_a_failure_is_stored_as_a_reason(objects: Path, command: str | None, words: str) -> None:
    if command is not None:
        is_script = command.startswith(("true", "kill", "echo", "gcc -c"))
        save(objects, compiler(objects, command) if is_script else command)
    found = ask(objects)
    assert words in found.problem
    assert found == BuiltOffsets(ID, {}, found.problem)


def test_a_malformed_command_file_and_a_malformed_vmlinux(objects: Path) -> None:
    (objects / "kernel/.fork.o.cmd").write_bytes(b"\x7fELF\0\xff garbage")
    assert "cannot be parsed" in ask(objects).problem
    (objects / "vmlinux").write_bytes(b"")
    assert ask(objects).problem.startswith("vmlinux cannot be read")


@pytest.fixture
def kernel(tmp_path: Path) -> KernelImage:
    return KernelImage("tree:here", tmp_path / "vmlinux", ImageKind.VMLINUX, "6.0.0", None, None)


def test_stored_offsets_are_read_only_for_the_same_build(kernel: KernelImage) -> None:
    assert find_offsets(kernel, ID) is None
    for left in (BuiltOffsets(ID, EXPECTED), BuiltOffsets(ID, WITH_KVM), BuiltOffsets(ID, {}, "why")):
        left.write(kernel.image.parent)
        assert find_offsets(kernel, ID) == find_offsets(kernel, None) == left
        assert find_offsets(kernel, ID[::-1]) is None, "the offsets belong to another build ID"
    nameless = BuiltOffsets(None, EXPECTED)
    nameless.write(kernel.image.parent)
    assert find_offsets(kernel, None) == nameless
    assert find_offsets(kernel, ID) is None


GARBAGE: list[Any] = [
    *("", "[]", "{", {}, {"build_id": 5, "offsets": EXPECTED}, {"build_id": "xy", "offsets": EXPECTED}),
    *({"build_id": ID.hex()}, {"build_id": ID.hex(), "offsets": {**EXPECTED, "mm_struct.pgd": "8"}}),
    {"build_id": ID.hex(), "offsets": {**EXPECTED, "mm_struct.pgd": -8}},
    {"build_id": ID.hex(), "offsets": {k: v for k, v in EXPECTED.items() if k != "mm_struct.pgd"}},
    {"build_id": ID.hex(), "offsets": {k: v for k, v in WITH_KVM.items() if k != "kvm.mm"}},
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
def test_garbage_is_an_error(kernel: KernelImage, garbage: Any) -> None:
    path = kernel.image.parent / OFFSETS_FILE
    path.write_text(garbage if isinstance(garbage, str) else json.dumps(garbage))
    found = find_offsets(kernel, ID)
    assert found is not None
    assert found.problem == "offsets.json is not valid"


@pytest.fixture
def facts(kernel: KernelImage) -> Callable[..., KernelFacts]:
    """The facts of a guest without BTF, whose kallsyms has no data symbols."""

    def make(**known: object) -> KernelFacts:
        made = KernelFacts(cast("Any", SimpleNamespace(known_kernel=kernel, ready={"release": "6.0.0"})))
        kallsyms = b"ffffffff9a000000 T _text\nffffffff9a000100 T schedule\n"
        made.__dict__.update({"build_id": ID, "btf": None, "vmlinux": None, "kallsyms": kallsyms, **known})
        return made

    return make


def test_walks_use_the_stored_offsets(kernel: KernelImage, facts: Callable[..., KernelFacts]) -> None:
    BuiltOffsets(ID, EXPECTED).write(kernel.image.parent)
    assert facts().offsets == TaskOffsets(
        tasks=8, pid=32, tgid=36, comm=56, flags=0, mm=24, signal=72, thread_node=40, thread_head=8, pgd=8
    )
    told = {member: 8 * at for at, member in enumerate(TASK_MEMBERS)}
    btf = SimpleNamespace(offset=told.__getitem__)
    assert facts(btf=btf).offsets == TaskOffsets.of(told.__getitem__), "the kernel's own BTF comes first"


def test_a_kernel_without_kvm_has_no_offsets_of_virtual_machines(
    kernel: KernelImage, facts: Callable[..., KernelFacts]
) -> None:
    BuiltOffsets(ID, WITH_KVM).write(kernel.image.parent)
    assert facts().offset_of("kvm.mm") == 8
    BuiltOffsets(ID, EXPECTED).write(kernel.image.parent)
    with pytest.raises(PremiseNotMet, match=r"stored no offset of kvm\.mm: it was built without KVM"):
        facts().offset_of("kvm.mm")


def test_the_reason_of_the_build_is_repeated(kernel: KernelImage, facts: Callable[..., KernelFacts]) -> None:
    with pytest.raises(
        PremiseNotMet, match=r"tree:here has no BTF, there is no offsets\.json .*`hugepfn build` has built"
    ):
        _ = facts().offsets
    BuiltOffsets(ID, {}, "no member named 'mm'").write(kernel.image.parent)
    with pytest.raises(
        PremiseNotMet, match=rf"did not find the offsets \(no member named 'mm'; remove {kernel.image.parent} to"
    ):
        _ = facts().offsets


def test_init_task_comes_from_the_vmlinux_where_kallsyms_has_no_data(facts: Callable[..., KernelFacts]) -> None:
    vmlinux = Vmlinux(Path("vmlinux"), {"_text": 0xFFFFFFFF81000000, "init_task": 0xFFFFFFFF81808B40}, False, ID)
    assert facts(vmlinux=vmlinux).init_task == 0xFFFFFFFF9A808B40
    with pytest.raises(PremiseNotMet, match="the address of init_task is"):
        _ = facts(vmlinux=dataclasses.replace(vmlinux, symbols={"_text": 0})).init_task
    with pytest.raises(MachineryError):
        _ = facts().init_task
