"""Tests for building selftests, of a tiny tree that looks like the kernel's: real git, make and compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from harness.errors import KernelBuildError, MachineryError, PremiseNotMet, UsageError
from harness.host import cache
from harness.kernel.build import Recipe, TreeOrigin, tools
from harness.kernel.build.selftests import Collection, arguments, collection, is_static
from harness.kernel.kconfig import Kconfig

pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in ("git", "make", "gcc", "xz")), reason="needs git, make and gcc"
)

# `make headers` and lib.mk as far as they are used.
FILES = {
    "Makefile": "headers:\n\t@mkdir -p $(O)/usr/include/linux && cp include/uapi/linux/own.h $(O)/usr/include/linux\n",
    "Kconfig": "",
    "arch/x86/Makefile": "",
    "include/uapi/linux/own.h": "#define OWN 1\n",
    "mm/memory.c": "int mm;\n",
    "drivers/x/registers.h": "#define REGISTERS 1\n",
    "tools/testing/selftests/lib.mk": """\
TEST_GEN_PROGS := $(patsubst %,$(OUTPUT)/%,$(TEST_GEN_PROGS))
TEST_GEN_FILES := $(patsubst %,$(OUTPUT)/%,$(TEST_GEN_FILES))
CFLAGS += $(KHDR_INCLUDES) $(USERCFLAGS)
all: $(TEST_GEN_PROGS) $(TEST_GEN_FILES)
$(OUTPUT)/%: %.c
	$(CC) $(CFLAGS) $(USERLDFLAGS) $^ $(LDLIBS) -o $@
""",
    "tools/testing/selftests/mm/Makefile": """\
TEST_GEN_FILES = good bad numa acl shared helper
TEST_PROGS = run_vmtests.sh
include ../lib.mk
$(OUTPUT)/acl: LDLIBS += -lnosuchlibrary
$(OUTPUT)/shared: shared.c
	$(CC) $(KHDR_INCLUDES) $^ -o $@ && mkdir -p $(OUTPUT)/objects
""",
    "tools/testing/selftests/mm/settings": "timeout=900\n",
    "tools/testing/selftests/mm/config": "CONFIG_USERFAULTFD=y\nCONFIG_TEST_HMM=m\nCONFIG_GUP_TEST=y\n",
    "tools/testing/selftests/mm/run_vmtests.sh": """\
CATEGORY="mmap" run_test ./good
    CATEGORY="mmap" run_test ./good -a 1
CATEGORY="mmap" run_test ./good $size
CATEGORY="mmap" run_test bash ./other.sh
CATEGORY="mmap" run_test ./bad
""",
    "tools/testing/selftests/mm/good.c": '#include <linux/own.h>\n#include "registers.h"\n'
    "int main(void) { return OWN - REGISTERS; }\n",
    "tools/testing/selftests/mm/bad.c": "int main(void) { return nothing; }\n",
    "tools/testing/selftests/mm/numa.c": "#include <numa.h>\n",
    "tools/testing/selftests/mm/acl.c": "int main(void) { return 0; }\n",
    "tools/testing/selftests/mm/shared.c": "int main(void) { return 0; }\n",
    "tools/testing/selftests/mm/helper.c": "int main(void) { return 0; }\n",
}


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "linux"
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "tools/testing/selftests/mm/registers.h").symlink_to("../../../../drivers/x/registers.h")
    return folder


def mm(tree: Path) -> Collection:
    return collection(Recipe(TreeOrigin(tree)), "mm")


def test_a_program_is_built_statically_and_nothing_is_written_to_the_tree(tree: Path) -> None:
    before = sorted((path, path.lstat().st_mtime_ns) for path in tree.rglob("*"))
    found = mm(tree)
    program = found.build("good")
    assert is_static(program.read_bytes())
    assert subprocess.run([program], check=False).returncode == 0, (
        "the program was built with its header and the target of its link"
    )
    assert sorted((path, path.lstat().st_mtime_ns) for path in tree.rglob("*")) == before
    assert found.timeout_s == 900


def test_the_programs_are_those_of_the_collections_script(tree: Path) -> None:
    found = mm(tree)
    assert found.programs == ("good", "bad", "numa", "acl", "shared", "helper")
    assert found.scripts == ("run_vmtests.sh",)
    assert found.commands() == ["good", "good -a 1", "bad"]


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("numa", "the header numa.h is missing; install with: apt-get install libnuma-dev"),
        ("acl", "libnosuchlibrary.a is missing; install with: apt-get install the -dev package of libnosuchlibrary"),
        ("shared", "its Makefile links it dynamically"),
    ],
)
def test_a_program_that_this_machine_cannot_build_is_a_skip(tree: Path, program: str, words: str) -> None:
    with pytest.raises(PremiseNotMet, match=f"mm/{program}.*{words}"):
        mm(tree).build(program)
    assert mm(tree).build("good").is_file()


def test_a_program_that_does_not_compile_names_its_line(tree: Path) -> None:
    with pytest.raises(KernelBuildError, match=r"mm/bad of tree:.* does not build: bad.c:1: .nothing. undeclared"):
        mm(tree).build("bad")
    assert not list((cache.root() / "selftests").glob("mm-bad-*")), "a failed build must not stay in the cache"


def test_headers_that_do_not_build_name_the_source(tree: Path) -> None:
    (tree / "include/uapi/linux/own.h").unlink()
    with pytest.raises(KernelBuildError, match=r"the headers of tree:.* does not build: .*Error 1"):
        mm(tree)


def test_only_changed_inputs_cause_a_rebuild(tree: Path) -> None:
    before = mm(tree).build("good")
    (tree / "mm/memory.c").write_text("int other;\n")
    assert mm(tree).build("good") == before
    (tree / "include/uapi/linux/own.h").write_text("#define OWN 2\n")
    after = mm(tree).build("good")
    assert after != before
    assert subprocess.run([after], check=False).returncode == 1


def test_an_unknown_collection_is_refused(tree: Path) -> None:
    for name in ("vfio", "../mm", ""):
        with pytest.raises(UsageError, match=f"has no selftests '{name}'"):
            collection(Recipe(TreeOrigin(tree)), name)


def test_a_missing_tool_is_one_line_before_anything_is_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_command", lambda command: None if command == "make" else "/usr/bin/" + command)
    with pytest.raises(
        MachineryError, match="cannot build selftests, because this host lacks make; install with: apt-get install make"
    ):
        mm(tree)
    assert not (cache.root() / "builds").exists()


def test_the_symbols_of_the_collections_config_that_a_kernel_lacks(tree: Path) -> None:
    assert mm(tree).lacking(Kconfig("CONFIG_USERFAULTFD=y\nCONFIG_GUP_TEST=m\n")) == ["TEST_HMM=m"]


def test_arguments_with_shell_expansions_are_left_out() -> None:
    script = 'CATEGORY="x" run_test ./a -b 0x1 "c"\nCATEGORY="x" run_test ./a $n\nrun_test() {\n# run_test ./b\n'
    assert arguments(script) == [("a", '-b 0x1 "c"')]


def test_an_elf_file_that_is_cut_off() -> None:
    with pytest.raises(MachineryError, match="is truncated"):
        is_static(b"\x7fELF\x02")
    with pytest.raises(MachineryError, match="64-bit ELF"):
        is_static(b"#!/bin/sh\n" + bytes(100))
