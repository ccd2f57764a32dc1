"""Tests for guest programs: found by name, compiled once to a static ELF, and a compiler's error in one line."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.errors import CompileError, MachineryError, UsageError
from harness.guest import compiler
from harness.guest.compiler import assemble_rom, compile_init, compile_program, find_source, guest_tests_dir
from harness.host import cache

HELLO = '#include <stdio.h>\nint main(void)\n{\n\treturn puts("hello") < 0;\n}\n'


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A separate cache folder, and no memory of another test's compiler."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    compiler._compiler.cache_clear()
    compiler._library.cache_clear()
    yield
    compiler._compiler.cache_clear()
    compiler._library.cache_clear()


PT_INTERP = 3


def segment_types(elf: bytes) -> list[int]:
    """The type of each program header of a 64-bit ELF file."""
    start, (size, count) = struct.unpack_from("<Q", elf, 32)[0], struct.unpack_from("<HH", elf, 54)
    return [struct.unpack_from("<I", elf, start + number * size)[0] for number in range(count)]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def fake_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    script = write(tmp_path / "fake-cc", f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))


def no_more_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(argv: list[str], *_: object, **__: object) -> None:
        raise AssertionError(f"compiled again: {argv}")

    monkeypatch.setattr(subprocess, "run", refuse)


def test_a_program_is_a_static_elf_and_its_stripped_copy(tmp_path: Path) -> None:
    program = compile_program(write(tmp_path / "hello.c", HELLO))
    assert program.name == "hello"
    assert program.read() == program.stripped.read_bytes()
    assert program.read()[:4] == b"\x7fELF"
    assert PT_INTERP not in segment_types(program.read())
    assert b".debug_info" in program.elf.read_bytes()
    assert b".debug_info" not in program.read()
    assert subprocess.run([program.stripped], capture_output=True, check=True).stdout == b"hello\n"


def test_the_library_is_linked_and_both_ways_to_include_it_work(tmp_path: Path) -> None:
    text = (
        '#include "lib/hugepfn.h"\n#include "hugepfn.h"\n#include <stdio.h>\n'
        'int main(void)\n{\n\tprintf("%zx %s", hp_leaf_size(HP_PUD), hp_level_name(HP_PMD));\n\treturn 0;\n}\n'
    )
    program = compile_program(write(tmp_path / "a.c", text))
    assert subprocess.run([program.stripped], capture_output=True, check=True).stdout == b"40000000 pmd"


CASES = """\
#include "lib/hugepfn.h"
#include <stdio.h>

static const struct one {
	long first;
	const char *name;
} cases[] = { { 3, "three" }, { 4, "four" } };

int main(int argc, char **argv)
{
	struct hp_options options = { .argc = argc, .argv = argv };

	printf("%ld", hp_choose(&options, "case", "four", cases)->first);
	return 0;
}
"""


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ((), 0, "4"),
        (("--case=three",), 0, "3"),
        (("--cases=three", "case=three"), 0, "4"),
        (("--case=thre",), 1, "Bail out! --case=thre: expected one of three, four: Invalid argument\n"),
        (("--case=",), 1, "Bail out! --case=: expected one of three, four: Invalid argument\n"),
    ],
)
def test_a_program_chooses_from_a_table_by_name(tmp_path: Path, words: tuple[str, ...], status: int, said: str) -> None:
    program = compile_program(write(tmp_path / "a.c", CASES))
    done = subprocess.run([program.stripped, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, said)


def test_the_library_is_compiled_once_for_all_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    really = subprocess.run

    def run(argv: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        calls.append(argv)
        return really(argv, **options)

    monkeypatch.setattr(subprocess, "run", run)
    for name in ("one", "two"):
        compile_program(write(tmp_path / f"{name}.c", HELLO))
    compiled = [[word for word in argv if word.endswith(".c")] for argv in calls]
    assert [[Path(file).name for file in files] for files in compiled[2:] if files] == [["one.c"], ["two.c"]]
    assert str(guest_tests_dir() / "lib/ktap.c") in compiled[0]


def test_a_program_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "hello.c", HELLO)
    first = compile_program(source)
    no_more_compiling(monkeypatch)
    assert compile_program(source) == first
    copy = write(tmp_path / "elsewhere/hello.c", HELLO)
    assert compile_program(copy) == first, "a program is cached by its content, not by its path"


@pytest.mark.parametrize("changed", ["hello.c", "own.h", "lib/hugepfn.h", "flags", "flags of the library", "compiler"])
def test_a_program_is_compiled_again_when_an_input_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    guest_tests = tmp_path / "guest_tests"
    shutil.copytree(guest_tests_dir() / "lib", guest_tests / "lib")
    monkeypatch.setattr(compiler, "guest_tests_dir", lambda: guest_tests)
    # Writes the objects of the library, or the file after -o, whatever the source is.
    objects = 'for file; do case $file in *.c) : > "$(basename "$file" .c).o";; esac; done; exit'
    body = f'case " $* " in *" -c "*) {objects};; esac; while [ "$1" != -o ]; do shift; done; cp /bin/true "$2"'
    fake_compiler(tmp_path, monkeypatch, body)
    source = write(tmp_path / "own/hello.c", '#include "own.h"\nint main(void) { return 0; }\n')
    header = write(tmp_path / "own/own.h", "/* one */\n")
    before = compile_program(source)

    match changed:
        case "hello.c":
            write(source, source.read_text() + "\n")
        case "own.h":
            write(header, "/* two */\n")
        case "lib/hugepfn.h":
            library_header = guest_tests / "lib/hugepfn.h"
            write(library_header, library_header.read_text() + "\n")
        case "flags":
            monkeypatch.setattr(compiler, "USERS_CFLAGS", (*compiler.USERS_CFLAGS, "-O0"))
        case "flags of the library":
            monkeypatch.setattr(compiler, "OUR_CFLAGS", (*compiler.OUR_CFLAGS, "-O0"))
        case "compiler":
            script = tmp_path / "fake-cc"
            script.write_text(script.read_text() + "# another version\n")
    compiler._compiler.cache_clear()
    compiler._library.cache_clear()
    after = compile_program(source)
    assert after.elf != before.elf
    assert before.elf.is_file(), "the old program may be in use and must stay"


SELFTEST = """#define _GNU_SOURCE
#include <sched.h>

int main(void)
{
	int unused;
	typeof(unused) cpu = sched_getcpu();

	return cpu < 0;
}
"""


def test_a_users_program_may_include_kselftest_h_and_have_warnings(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hugepfn")
    program = compile_program(write(tmp_path / "mine.c", SELFTEST))
    assert subprocess.run([program.stripped], check=False).returncode == 0
    assert "unused variable" not in caplog.text, "typeof() counts as a use"
    compile_program(write(tmp_path / "warns.c", SELFTEST.replace("typeof(unused)", "int")))
    assert "warns.c: the compiler warns: " in caplog.text
    assert "unused variable" in caplog.text


def test_our_own_programs_may_not_have_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest_tests = tmp_path / "guest_tests"
    shutil.copytree(guest_tests_dir() / "lib", guest_tests / "lib")
    monkeypatch.setattr(compiler, "guest_tests_dir", lambda: guest_tests)
    with pytest.raises(CompileError, match="unused variable"):
        compile_program(write(guest_tests / "warns.c", SELFTEST.replace("typeof(unused)", "int")))


def test_init_is_compiled_again_when_any_of_its_parts_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guest_tests = tmp_path / "guest_tests"
    shutil.copytree(guest_tests_dir() / "lib", guest_tests / "lib")
    monkeypatch.setattr(compiler, "guest_tests_dir", lambda: guest_tests)
    fake_compiler(tmp_path, monkeypatch, 'while [ "$1" != -o ]; do shift; done; cp /bin/true "$2"')
    seen = {compile_init().elf}
    for part in ("init/main.c", "init/init.h", "agent/jobs.c", "agent/frames.h"):
        path = guest_tests / "lib" / part
        write(path, path.read_text() + "\n")
        program = compile_init()
        assert program.name == "init"
        seen.add(program.elf)
    write(guest_tests / "lib/ktap.c", "/* a program's, and not init's */\n")
    seen.add(compile_init().elf)
    assert len(seen) == 5


def programs() -> list[str]:
    """The programs in the cache, without the library that all of them are linked with."""
    return [one.name for one in cache.entries("programs") if not one.name.startswith("libhugepfn.a-")]


def compile_error(source: Path) -> str:
    with pytest.raises(CompileError) as caught:
        compile_program(source)
    assert programs() == []
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_first_error_is_shown_in_one_line(tmp_path: Path) -> None:
    source = write(tmp_path / "bad.c", "int main(void)\n{\n\talpha = 1;\n\tbeta = 2;\n\treturn 0;\n}\n")
    message = compile_error(source)
    assert message.startswith("guest program bad.c does not compile: ")
    assert "bad.c:3:" in message
    assert "alpha" in message
    assert "beta" not in message


def test_a_missing_function_is_reported(tmp_path: Path) -> None:
    source = write(tmp_path / "link.c", "void nowhere(void);\nint main(void)\n{\n\tnowhere();\n\treturn 0;\n}\n")
    assert "undefined reference to `nowhere'" in compile_error(source)


def test_a_file_with_error_in_its_name(tmp_path: Path) -> None:
    source = write(tmp_path / "error_path.c", "int main(void)\n{\n\treturn nothing;\n}\n")
    assert "nothing" in compile_error(source)


def test_a_compiler_that_fails_without_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path, monkeypatch, "exit 7")
    assert compile_error(write(tmp_path / "x.c", HELLO)) == "guest program lib/*.c does not compile: no message"


def test_a_compiler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path, monkeypatch, "exec tail -f /dev/null")
    monkeypatch.setattr(compiler, "_COMPILE_TIMEOUT_S", 0.05)
    assert "fake-cc took more than 0.05 s" in compile_error(write(tmp_path / "x.c", HELLO))


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "x.c", HELLO)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        MachineryError, match=r"there is no C compiler; install it with: apt-get install gcc libc6-dev$"
    ):
        compile_program(source)


def test_no_binutils(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(tmp_path, monkeypatch, "exit 0")
    source = write(tmp_path / "x.c", HELLO)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MachineryError, match="ar is missing on this host; install gcc and binutils"):
        compile_program(source)
    assert programs() == []


# --- where programs are ------------------------------------------------------------------------------


def test_a_program_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "own.c", HELLO)
    monkeypatch.chdir(tmp_path)
    assert find_source(str(source)) == source
    assert find_source("./own.c") == source
    with pytest.raises(UsageError, match=r"guest program \./other\.c: no such file"):
        find_source("./other.c")


def test_a_program_by_its_name(tmp_path: Path) -> None:
    assert find_source("fork") == guest_tests_dir() / "fork.c"
    own = write(tmp_path / "fork.c", HELLO)
    assert find_source("fork", (tmp_path,)) == own, "the user's own program comes first"


def test_an_unknown_name_gets_suggestions_and_the_expected_path(tmp_path: Path) -> None:
    write(tmp_path / "mine.c", HELLO)
    expected = rf"'mnie'; did you mean 'mine'\? expected mnie\.c in {tmp_path} or /.*/guest_tests; write it there, or"
    with pytest.raises(UsageError, match=f"^no guest program {expected}"):
        find_source("mnie", (tmp_path,))


# --- the accelerator's ROM ---------------------------------------------------------------------------


def test_the_rom_fills_its_64_kib_up_to_the_reset_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    path = assemble_rom("accel")
    rom = path.read_bytes()
    assert len(rom) == 0x10000
    assert rom[0xFFF0:0xFFF5] == b"\xea\x00\x00\x00\xf0", "ljmp $0xf000, $0"
    no_more_compiling(monkeypatch)
    assert assemble_rom("accel") == path


def test_a_rom_that_does_not_assemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "lib/accel.S", "\tnop\n\tfrobnicate %eax\n")
    monkeypatch.setattr(compiler, "guest_tests_dir", lambda: tmp_path)
    with pytest.raises(CompileError, match=r"accel\.S:2: Error: no such instruction"):
        assemble_rom("accel")
