"""Each scenario of the suite as a C file: a plain gcc takes it, and it checks the values that the test expects."""

from __future__ import annotations

import concurrent.futures as futures
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness.bugs.claimed import claimed_by
from harness.bugs.flatten import flatten, library_of
from harness.bugs.scenario import ALONE, collect, reproducer_of, written
from harness.cli import cli
from harness.errors import UsageError
from harness.guest.compiler import guest_tests_dir
from harness.pagetable import Level
from harness.selection.selected import Selected

GCC = ("gcc", "-Wall", "-Wextra", "-Werror", "-static", "-pthread")


@pytest.fixture(scope="module")
def items() -> list[Any]:
    return collect([])


def parameters_of(item: Any) -> dict[str, object]:
    return item.callspec.params if hasattr(item, "callspec") else {}


def test_every_scenario_gives_a_program_and_its_arguments(items: list[Any]) -> None:
    said = {item.name: claimed_by(item.function, parameters_of(item)) for item in items}
    assert len(said) > 500
    assert said["test_fork[pud]"].arguments == ("--level=pud",)
    assert said["test_fork[pud]"].values == {f"{who}-write-faults": "0" for who in ("child", "parent", "grandchild")}
    assert said["test_device_data[pte]"].arguments == ("--case=data", "--level=pte", "--top=pud")
    # What the test claims only in one branch of a condition about the machine is not expected.
    assert "write-faults" not in said["test_dirty_soft_dirty_mprotect[pmd]"].values
    assert sum(bool(one.values) for one in said.values()) > 350


def test_a_plain_gcc_builds_each_program_without_a_warning(items: list[Any], tmp_path: Path) -> None:
    one_of_each = {claimed_by(item.function, parameters_of(item)).program: item for item in items}
    assert one_of_each.keys() == {path.stem for path in guest_tests_dir().glob("*.c")} - {"bar_bits", "caps", "wide"}

    for program, item in one_of_each.items():
        source = tmp_path / f"{program}.c"
        source.write_text(written(item))
        comment, _, code = source.read_text().partition(" */\n")
        assert max(map(len, comment.splitlines())) <= 120
        assert '#include "' not in code

    def build(program: str) -> str:
        source = tmp_path / f"{program}.c"
        argv = [*GCC, "-c", "-o", str(tmp_path / program), str(source)]  # without the linker, which takes longest
        return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False).stderr

    with futures.ThreadPoolExecutor(2) as pool:
        said = dict(zip(one_of_each, pool.map(build, one_of_each), strict=True))
    assert {program: words for program, words in said.items() if words} == {}


def helper(vm: Any, claim: Any, case: str, *more: str) -> object:
    with vm.run("prog", f"--case={case}", *more) as guest:
        seen = guest.until("there")["parent"].leaf("bar")
        with claim("what is seen", "mm/x.c x()"):
            assert seen.level is Level.PMD
        if vm.caps.soft_dirty:
            with claim("only on some machines", "mm/x.c x()"):
                assert guest.result.values["sometimes"] == "1"
        values = guest.result.values
        with claim(f"the values of {case}", "mm/x.c x()"):
            assert (values["a"], values["b"]) == ("1", "2")
            assert guest.result.faults("c", before="there") == 0
            assert int(values["d"]) > 3
            assert values["e"] == values["f"]
            assert values["g"] == "1" or values["h"] == "1"
        if values["i"] == "0":
            assert values["j"] == "1"
        for who in ("x", "y"):
            assert values[f"{who}-read"] == "0"
    return seen


def whole(vm: Any, claim: Any, level: Level) -> None:
    if why_not := vm.caps.why_not(level):
        raise RuntimeError(why_not)
    at = helper(vm, claim, "first", f"--level={level.label}")
    assert at


def returns_sometimes(vm: Any, claim: Any) -> None:
    with vm.run("prog") as guest:
        if vm.caps.kernel_dirty:
            return
        with claim("afterwards", "mm/x.c x()"):
            assert guest.result.values["a"] == "1"


def depends(vm: Any) -> None:
    with vm.run("prog", f"--pages={vm.kernel.pages}"):
        pass


def test_a_value_is_expected_only_where_the_test_always_expects_it() -> None:
    said = claimed_by(whole, {"level": Level.PMD})
    assert (said.program, said.arguments) == ("prog", ("--case=first", "--level=pmd"))
    assert said.claims == ["what is seen", "the values of first"]
    assert said.values == {"a": "1", "b": "2", "c": "0", "x-read": "0", "y-read": "0"}


def test_what_may_not_be_reached_is_not_claimed() -> None:
    said = claimed_by(returns_sometimes, {})
    assert (said.program, said.claims, said.values) == ("prog", [], {})


def test_arguments_that_the_machine_decides_are_refused() -> None:
    with pytest.raises(UsageError, match="no C file can be made of depends: it runs no program, or the machine"):
        claimed_by(depends, {})


PROGRAM = """\
// SPDX-License-Identifier: GPL-2.0-only
/* Invariant: it holds. */
#include <stdio.h>

#include "lib/hugepfn.h"

static int faults(void)
{
	return 3;
}

int main(int argc, char **argv)
{
	struct hp_options options = hp_start(argc, argv);

	ktap_value("faults", "%d", faults());
	ktap_value("level", "%s", hp_level_name(options.level));
	ktap_value("again", "%ld", hp_read_faults(&options));
	ktap_ok(hp_option(&options, "fails", NULL) == NULL, "nobody wants it to fail");
	return ktap_finish();
}
"""
ENTRY = """\
int main(int argc, char **argv)
{
	return scenario(argc, argv);
}"""


@pytest.fixture
def run_flat(tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Build a flattened program with the values that it has to report, and run it here: it needs no device."""

    def run(values: str, *arguments: str) -> tuple[int, str]:
        lib = guest_tests_dir() / "lib"
        library = library_of({file.name: file.read_text() for file in lib.glob("*.[ch]")}, ALONE.read_text())
        text = flatten(PROGRAM, library, ENTRY).replace("EXPECTATIONS", values)
        assert "hp_bar" not in text  # it uses nothing of the device
        (tmp_path / "flat.c").write_text(f"#define _GNU_SOURCE\n{text}")
        subprocess.run([*GCC, "-o", tmp_path / "flat", tmp_path / "flat.c"], check=True, timeout=120)
        done = subprocess.run([tmp_path / "flat", *arguments], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout.splitlines()[-1]

    return run


@pytest.mark.parametrize(
    ("values", "arguments", "status", "last"),
    [
        ('{ "faults", "3", 0, 0 },', (), 0, "FINE: as far as user space can tell; values checked: 1"),
        ('{ "faults", "4", 0, 0 },', (), 1, "BROKEN: what does not hold, of what user space can tell: 1"),
        ('{ "level", "pmd", 0, 0 },', ("--level=pmd",), 0, "FINE: as far as user space can tell; values checked: 1"),
        ("", (), 2, "CANNOT TELL: what is claimed is about page-table entries, which only hugepfn shows"),
        ('{ "never", "1", 0, 0 },', (), 2, "CANNOT TELL: "),
        ("", ("--fails=1",), 1, "BROKEN: what does not hold"),
        ("", ("--level=pxd",), 2, "CANNOT TELL: --level=pxd: expected one of pte, pmd, pud"),
    ],
)
def test_the_exit_status_says_what_user_space_can_tell(
    values: str, arguments: tuple[str, ...], status: int, last: str, run_flat: Callable[..., tuple[int, str]]
) -> None:
    ended, said = run_flat(values, *arguments)
    assert (ended, said[: len(last)]) == (status, last)


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("fork", "fork has several levels; expected fork:LEVEL with one of: pte, pmd, pud"),
        ("nothing", "nothing"),
        (str(Path(__file__)), "expected a scenario of hugepfn with its level, as in fork:pud"),
    ],
)
def test_a_word_that_selects_no_single_scenario_is_refused(word: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        reproducer_of(Selected.parse(word))


def test_the_command_writes_a_file_or_prints_it(tmp_path: Path) -> None:
    printed = CliRunner().invoke(cli, ["reproducer", "fork:2M"])
    assert printed.exit_code == 0
    CliRunner().invoke(cli, ["reproducer", "fork:pmd", "-o", str(tmp_path / "fork.c")])
    assert (tmp_path / "fork.c").read_text() == printed.stdout
    assert " * fork:pmd (leaves of 2M): fork() copies the leaf of a shared pfnmap" in printed.stdout
