"""The offsets that walks need, found by the compiler with the same command that compiled a part of the kernel.

A minimal kernel has neither BTF nor DWARF. kbuild keeps the command of each object in ``.NAME.o.cmd``
(scripts/Kbuild.include, "cmd_and_savecmd"): the same flags, headers and plugins give the same layout, even with
CONFIG_RANDSTRUCT. The kernel finds offsets for its own assembly in the same way (arch/x86/kernel/asm-offsets.c).
"""

from __future__ import annotations

import mmap
import re
import shlex
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness.errors import MachineryError
from harness.host.process import run
from harness.kernel.elf import Elf
from harness.kernel.offsets import KVM_MEMBERS, TASK_MEMBERS, BuiltOffsets

_OBJECT = "kernel/fork.o"  # is in every kernel, and uses all of these structs
_SECTION = ".hugepfn_offsets"
_TIMEOUT_S = 300.0
_WORDS_MAX = 300
_HAS_KVM = " || ".join(f"defined(CONFIG_KVM_{it})" for it in ("AMD", "AMD_MODULE", "INTEL", "INTEL_MODULE"))


def _words(members: Sequence[str]) -> list[str]:
    return [f"\toffsetof(struct {member.replace('.', ', ', 1)})," for member in members]


# A separate section: sanitizers do not pad what is in one, and every compiler keeps its name.
SOURCE = "\n".join(
    [
        *(f"#include <linux/{name}.h>" for name in ("mm_types", "sched", "sched/signal", "stddef")),
        f"#if {_HAS_KVM}",
        *(f"#include <linux/{name}.h>" for name in ("fdtable", "fs", "kvm_host")),
        "#define HAS_KVM",
        "#endif",
        f'const unsigned long hugepfn_offsets[] __attribute__((used, section("{_SECTION}"))) = {{',
        *_words(TASK_MEMBERS),
        "#ifdef HAS_KVM",
        *_words(KVM_MEMBERS),
        "#endif",
        "};\n",
    ]
)
# GNU make's escape sequences in a saved command (scripts/Kbuild.include, "make-cmd").
_ESCAPES = {"$(pound)": "#", "$$": "$"}


def built_offsets(objects: Path, env: Mapping[str, str]) -> BuiltOffsets:
    """The offsets to store beside the vmlinux that was built in an O= folder, or the reason why there are none.

    :param env: make's environment.
    """
    build_id = None
    try:
        build_id = _build_id(objects / "vmlinux")
        return BuiltOffsets(build_id, compiled_offsets(objects, env))
    except MachineryError as error:
        return BuiltOffsets(build_id, {}, str(error))


def _build_id(vmlinux: Path) -> bytes | None:
    try:
        with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Elf(data, "vmlinux").build_id()
    except (OSError, ValueError) as error:  # ValueError: the file is empty
        raise MachineryError(f"vmlinux cannot be read: {error}") from error


def compiled_offsets(objects: Path, env: Mapping[str, str]) -> dict[str, int]:
    """Bytes from the start of its struct to each member, in the kernel that was built in an O= folder.

    The members are TASK_MEMBERS, and KVM_MEMBERS if the kernel has KVM.

    :param env: make's environment.
    :raises MachineryError: there is no such command, or the compiler failed; one line with the error.
    """
    note = objects / _OBJECT.replace("/", "/.")
    try:
        saved = note.with_name(f"{note.name}.cmd").read_text(errors="replace")
    except OSError as error:
        raise MachineryError(f"kbuild saved no command for {_OBJECT} ({error.strerror})") from error
    words = compile_words(saved)
    source, target = objects / "hugepfn-offsets.c", objects / "hugepfn-offsets.o"
    source.write_text(SOURCE)
    target.unlink(missing_ok=True)
    # ccache would store what is never needed again; -flto would leave no machine code in the object.
    argv = [*words, "-w", "-fno-lto", "-c", "-o", str(target), str(source)]
    done = run(argv, timeout_s=_TIMEOUT_S, cwd=objects, env={**env, "CCACHE_DISABLE": "1"}, check=False)
    if done.status != 0 or not target.is_file():
        raise MachineryError(f"{Path(words[0]).name} ended with status {done.status}: {_first_error(done.stderr)}")
    data = Elf(target.read_bytes(), "the object file of hugepfn-offsets.c").content(_SECTION)
    found = b"" if data is None else data
    for members in (TASK_MEMBERS, (*TASK_MEMBERS, *KVM_MEMBERS)):
        if len(found) == 8 * len(members):
            return dict(zip(members, struct.unpack(f"<{len(members)}Q", found), strict=True))
    raise MachineryError(
        f"expected {8 * len(TASK_MEMBERS)} bytes in the section {_SECTION} of hugepfn-offsets.o, or "
        f"{8 * len(KVM_MEMBERS)} more with KVM, found {len(found)}"
    )


def compile_words(saved: str) -> list[str]:
    """The compiler and its flags from a ``.cmd`` file, without source, target and the dependency file.

    :raises MachineryError: saved is not a compile command.
    """
    # "cmd_" before 6.3. A semicolon separates the compiler's command from others, such as objtool.
    found = re.match(rf"(?:saved)?cmd_{re.escape(_OBJECT)} := (.*)", saved)
    text = re.sub(r"\$\(pound\)|\$\$", lambda escape: _ESCAPES[escape[0]], found[1]) if found else ""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|")
    lexer.whitespace_split, lexer.commenters = True, ""
    kept: list[str] = []
    try:
        words = iter(lexer)
        for word in words:
            if word in (";", "&&", "||", "|", "&"):
                break
            if word == "-o":
                next(words, "")
            elif word != "-c" and not word.startswith("-Wp,-M") and not word.endswith("kernel/fork.c"):
                kept.append(word)
    except ValueError as error:
        raise MachineryError(f"kbuild's command for {_OBJECT} cannot be parsed: {error}") from error
    if len(kept) < 2:
        raise MachineryError(f"kbuild's command for {_OBJECT} cannot be parsed: {saved.partition(chr(10))[0][:80]!r}")
    return kept


def _first_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    chosen = next((line for line in lines if "error:" in line.lower()), lines[0] if lines else "no message")
    return chosen.partition("error: ")[2][:_WORDS_MAX] or chosen[:_WORDS_MAX]
