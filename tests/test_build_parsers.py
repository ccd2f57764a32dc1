"""Tests for the parsers of a build: fragments, patches, mailboxes, Kconfig files, compiler output. No build, no git."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.kernel.build import kconfigs_dir, parse_origin
from harness.kernel.build.expressions import why_false
from harness.kernel.build.fragments import config_lines, merge, parse, unmet
from harness.kernel.build.output import built, diagnostics, machine_fault
from harness.kernel.build.patches import Patch, split, why_not
from harness.kernel.build.source import split_patches
from harness.kernel.build.symbols import Symbols, explain, read_symbols
from harness.kernel.kconfig import Kconfig

DATA = Path(__file__).parent / "data/build"

FRAGMENT = """\
# what it is for
CONFIG_SMP=y                    # a reason
CONFIG_NAME="a # b \\"c\\""  # text keeps its hash and its quotes
CONFIG_NR=4

# CONFIG_TINY is not set        (a reason)
CONFIG_OFF=n
"""


def test_a_fragment_is_read_with_its_places() -> None:
    found = parse("a.config", FRAGMENT)
    assert [(each.symbol, each.value, each.place) for each in found] == [
        ("SMP", "y", "a.config:2"),
        ("NAME", '"a # b \\"c\\""', "a.config:3"),
        ("NR", "4", "a.config:4"),
        ("TINY", "n", "a.config:6"),
        ("OFF", "n", "a.config:7"),
    ]
    assert config_lines(found).splitlines()[0::3] == ["CONFIG_SMP=y", "# CONFIG_TINY is not set"]


@pytest.mark.parametrize("line", ["CONFIG_X", "CONFIG_X = y", "X=y", "CONFIG_X=y z", 'CONFIG_X="a'])
def test_a_malformed_line_is_reported_with_its_place(line: str) -> None:
    with pytest.raises(UsageError, match=r"f\.config:2: .* is not a request"):
        parse("f.config", f"CONFIG_A=y\n{line}\n")


def test_the_last_setting_counts_and_unfulfilled_ones_are_found() -> None:
    wanted = merge([parse("a", FRAGMENT), parse("b", "CONFIG_NR=8\nCONFIG_GONE=y\n")])
    config = Kconfig('CONFIG_SMP=y\nCONFIG_NAME="a # b \\"c\\""\nCONFIG_NR=4\nCONFIG_OFF=m\n')
    assert [(each.symbol, each.file) for each in unmet(wanted, config)] == [("NR", "b"), ("OFF", "a"), ("GONE", "b")]


@pytest.mark.parametrize("path", sorted(kconfigs_dir().glob("*.config")), ids=lambda path: str(path.stem))
def test_our_fragments_have_a_purpose_and_a_reason_on_every_line(path: Path) -> None:
    purpose, *lines = path.read_text().splitlines()
    assert purpose.startswith("# ")
    assert parse(path.name, path.read_text())
    for line in lines:
        assert line.startswith("# CONFIG_") or len(line.partition("#")[2].strip()) > 4, line


def test_a_mailbox_gives_its_patches_in_order_without_the_cover_letter() -> None:
    patches = split("s.mbox", (DATA / "series.mbox").read_bytes())
    assert [patch.name for patch in patches] == [
        "s.mbox ([PATCH 1/3] mm: a plain one, with a folded subject)",
        "s.mbox ([PATCH 2/3] mm: quoted-printable, and the same file again)",
        "s.mbox ([PATCH 3/3] mm: base64)",
    ]
    assert b"+zwei\n" in patches[0].diff
    assert b"+x = 2; /* a line that is long enough to be broken by the encoding, which happens at" in patches[1].diff
    assert patches[2].diff.startswith(b"--- a/mm/a.c\n+++ b/mm/a.c\n@@ -3 +3 @@\n-three\n+drei\n")


def test_a_plain_diff_is_one_patch_and_text_is_none() -> None:
    diff = b"words: before\n\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
    (patch,) = split("x.patch", diff)
    assert patch.name == "x.patch"
    assert b"--- a/x\n" in patch.diff
    with pytest.raises(UsageError, match=r"no\.patch contains no patch"):
        split("no.patch", b"From nobody\n--- this is not one\n")


def test_a_patch_that_does_not_apply_is_reported_by_hunk() -> None:
    diff = b"--- a/m/a.c\n+++ b/m/a.c\n@@ -1,2 +1 @@\n-x\n y\n@@ -7 +6 @@ int f(void)\n-x\n"
    diff += b"--- a/b.c\n+++ b/b.c\n@@ -7 +7 @@\n"
    patch = Patch("p", diff)
    words = "error: patch failed: m/a.c:7\nerror: m/a.c: patch does not apply\n"
    assert why_not(words, patch) == "m/a.c, hunk 2 (@@ -7 +6 @@ int f(void))"
    assert why_not("error: patch failed: b.c:7\n", patch) == "b.c, hunk 1 (@@ -7 +7 @@)"
    assert why_not("error: n.c: does not exist in index\n", patch) == "n.c: does not exist in this source"
    assert why_not("error: corrupt patch at line 3\n", patch) == "corrupt patch at line 3"


def test_a_failed_build_has_file_line_and_message() -> None:
    lines = (DATA / "compiler-error.log").read_text().splitlines()
    assert [str(each) for each in diagnostics(lines, "/c/builds/linux-1/src")] == [
        "mm/huge_memory.c:1630: ‘pmdd’ undeclared (first use in this function); did you mean ‘pmd’?",
        "mm/memory.c:12: linux/nope.h: No such file or directory",
    ]
    assert [built(line) for line in lines if built(line)] == ["scripts/basic/fixdep", "mm/huge_memory.o", "fs/x.o"]
    assert machine_fault(lines) is None


WORDS = [
    ("ld: mm/huge_memory.o: in function `f':", None),
    ("huge_memory.c:(.text+0x12): undefined reference to `nope'", "huge_memory.c: undefined reference to `nope'"),
    (
        "/usr/bin/ld: vmlinux.o: multiple definition of `x'; y.o:(.bss+0x0): first defined here",
        "vmlinux.o: multiple definition of `x'; y.o:(.bss+0x0): first defined here",
    ),
    ("/s/mm/Kconfig:12: syntax error", "mm/Kconfig:12: syntax error"),
    ("/s/mm/Kconfig:12:warning: defaults for choice values not supported", None),
    ("/s/arch/x86/entry/a.S:3: Error: no such instruction: `foo'", "arch/x86/entry/a.S:3: no such instruction: `foo'"),
    ("make[2]: *** No rule to make target 'mm/x.o', needed by 'mm/built-in.a'.  Stop.", "No rule to make target"),
    ('ERROR: modpost: "f" [drivers/x.ko] undefined!', '"f" [drivers/x.ko] undefined!'),
    ("  CC      lib/error.o", None),
]


@pytest.mark.parametrize(("line", "told"), WORDS)
def test_the_error_format_of_every_tool_is_known(line: str, told: str | None) -> None:
    found = [str(each) for each in diagnostics([line], "/s")]
    assert [each[: len(told or "")] for each in found] == ([told] if told else [])


FAULTS = [
    ("/tmp/ccX.s: Assembler messages: Fatal error: can't write 24 bytes to x.o: No space left on device", "no room"),
    ("gcc: fatal error: Killed signal terminated program cc1", "no memory"),
    ("/s/tools/objtool/include/objtool/elf.h:10:10: fatal error: gelf.h: No such file or directory", "libelf-dev"),
    ("/bin/sh: 1: bc: not found", "bc"),
    ("make[4]: *** [/s/scripts/Makefile.build:234: mm/sparse.o] Terminated", "ended"),
    ("make: *** [Makefile:236: __sub-make] Error 2", None),
    ("/s/mm/x.c:1:10: fatal error: linux/gelf.h.h: No such file or directory", None),
]


@pytest.mark.parametrize(("line", "fault"), FAULTS)
def test_failures_of_this_machine_are_distinguished(line: str, fault: str | None) -> None:
    assert machine_fault([line]) == fault


@pytest.fixture(scope="module")
def symbols() -> Symbols:
    def read(path: str) -> str | None:
        return (DATA / "kconfig" / path).read_text() if (DATA / "kconfig" / path).is_file() else None

    return read_symbols(read, {"SRCARCH": "x86"})


def test_kconfig_files_are_read_through_menus_ifs_and_help(symbols: Symbols) -> None:
    assert sorted(symbols.definitions) == sorted(
        "MMU 64BIT LEVELS MODULES CHECK ENFORCED RAM HELPER LONELY ONE TWO".split()  # noqa: SIM905 - shorter so
    )
    (check,) = symbols.definitions["CHECK"]
    assert check.place == "Kconfig:20"
    assert check.depends == [
        "MMU",
        "EXPERT || 64BIT",
        "SUPPORTED && \t\t!TINY",
        "(RAM || LEVELS > 4) && $(cc-option,-mfoo)",
    ]
    assert symbols.definitions["ONE"][0].depends == ["MMU"]
    assert symbols.definitions["HELPER"][0].depends == []


BASE = "CONFIG_MMU=y\nCONFIG_64BIT=y\nCONFIG_SUPPORTED=y\n"
REASONS = [
    ("CHECK", "y", BASE + "CONFIG_RAM=y\nCONFIG_TINY=y", "needs !TINY"),
    ("CHECK", "y", BASE + "CONFIG_DEVMEM=y\nCONFIG_LEVELS=4", "needs (RAM or (LEVELS > 4))"),
    (
        "CHECK",
        "y",
        "CONFIG_MMU=y\nCONFIG_RAM=y\n",
        "needs (EXPERT or 64BIT) and SUPPORTED, which no Kconfig file defines",
    ),
    (
        "ENFORCED",
        "y",
        BASE + "CONFIG_LEVELS=5\nCONFIG_TINY=y",
        "needs CHECK (which needs !TINY)",
    ),
    ("RAM", "y", BASE + "CONFIG_DEVMEM=y", "needs (!DEVMEM or STRICT)"),
    ("HELPER", "y", BASE, "it cannot be set by a user, only selected by CHECK"),
    ("LONELY", "m", BASE, "it cannot be set by a user"),
    ("HELPER", "n", BASE + "CONFIG_CHECK=y\nCONFIG_HELPER=y", "CHECK selects it"),
    ("64BIT", "n", "CONFIG_64BIT=y", 'it is on by default, and it can only be set with ("$(ARCH)" = "x86")'),
    ("RAM", "n", "CONFIG_RAM=y", "it is on by default, and it cannot be set by a user"),
    ("ONE", "y", BASE, "nothing in Kconfig:49 prevents it: another choice was made, or the value is out of range"),
    ("LEVELS", "9", BASE + "CONFIG_LEVELS=5", "it is 5 instead; it cannot be set by a user"),
    ("NOPE", "y", BASE, "there is no such symbol in any Kconfig file of this source"),
]


@pytest.mark.parametrize(("symbol", "value", "config", "reason"), REASONS)
def test_why_a_symbol_was_dropped(symbols: Symbols, symbol: str, value: str, config: str, reason: str) -> None:
    assert explain(symbol, value, symbols, Kconfig(config)) == reason


EXPRESSIONS = [
    ("A && B", ["B"]),
    ("A || B", []),
    ("B || C", ["(B or C)"]),
    ("!(A && B)", []),
    ("!(A || B)", ["!A"]),
    ("!A", ["!A"]),
    ("B && (A || C) && D", ["B", "D"]),
    ("M=m && N >= 4 && N < 0x10", []),
    ("M=y", ["(M = y)"]),
    ("A != y", ["(A != y)"]),
    ('S = "text" && A', []),
    ("$(success,test (x)) && A", []),
    ("!$(success,true)", ["!$(success,true)"]),
    ("y", []),
    ("n || B", ["(n or B)"]),
]


@pytest.mark.parametrize(("expression", "missing"), EXPRESSIONS)
def test_the_missing_part_of_an_expression(expression: str, missing: list[str]) -> None:
    assert why_false(expression, Kconfig('CONFIG_A=y\nCONFIG_M=m\nCONFIG_N=4\nCONFIG_S="text"\n')) == missing


def test_patches_are_split_off_a_spec() -> None:
    assert split_patches("debsrc:6.12+a.patch+d/b.mbox") == ("debsrc:6.12", (Path("a.patch"), Path("d/b.mbox")))
    assert split_patches("debsrc:6.12.5-1~bpo12+1") == ("debsrc:6.12.5-1~bpo12+1", ())
    assert split_patches("tree:/l+x/y@v1") == ("tree:/l+x/y@v1", ())
    with pytest.raises(UsageError, match="'b' is not a patch file"):
        split_patches("tree:/l+a.patch+b")


def test_a_tree_is_a_folder_and_a_revision(tmp_path: Path) -> None:
    (tmp_path / "me@work").mkdir()
    for text, spec in (
        (f"{tmp_path}/me@work", f"tree:{tmp_path}/me@work"),
        (f"tree:{tmp_path}/me@work@HEAD@{{1}}", f"tree:{tmp_path}/me@work@HEAD@{{1}}"),
        ("debsrc:6.12-rc3@trixie", "debsrc:6.12~rc3@trixie"),
        ("nowhere@v6", "tree:nowhere@v6"),
    ):
        origin = parse_origin(text)
        assert origin.spec == spec
        assert parse_origin(origin.spec) == origin
    for text in ("tree:", "tree:@v6", f"{tmp_path}@", "debsrc:", "debsrc:new", "debsrc:6.12@Trixie"):
        with pytest.raises(UsageError):
            parse_origin(text)
