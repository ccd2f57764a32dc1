"""Checks the functions of harness/kernel_functions.py against tests/data/kernel_functions.json."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from harness import kernel_functions
from harness.kernel.definitions import definition_line
from harness.kernel_functions import KernelFunction, every_function
from harness.selection.tests import ledger_of
from harness.verdict.seen import series_of
from tests.kernel_source import Source, Table

ROOT = Path(__file__).resolve().parents[1]
SCENARIOS = sorted((ROOT / "guest_tests").glob("test_*.py"))
TABLE = Table.load()
FUNCTIONS = sorted(every_function(), key=str)
IN_A_STRING = re.compile(r"[\w/.-]+\.[chS] \w+\(\)")

# --- the functions and the sources ---------------------------------------------------------------


def claimed(function: KernelFunction, found: tuple[str, ...], versions: tuple[str, ...]) -> bool:
    """Whether ``since`` and ``until`` of a function agree with the versions in which it was found."""
    if not found:
        return False
    since = None if found[0] == versions[0] else series_of(found[0])
    until = None if found[-1] == versions[-1] else series_of(found[-1])
    return (function.since, function.until) == (since, until)


@pytest.mark.parametrize("function", FUNCTIONS, ids=str)
def test_since_and_until_of_every_function_are_correct(function: KernelFunction) -> None:
    found = TABLE.defined_in.get(str(function), ())
    assert claimed(function, found, TABLE.versions), (
        f"{function}: since={function.since}, until={function.until}, but of {', '.join(TABLE.versions)} it is in "
        f"{', '.join(found) or 'none'}; if the table is older than the function, run `make kernel-functions`"
    )


@pytest.mark.parametrize("function", [one for one in FUNCTIONS if one.elsewhere], ids=str)
def test_alternatives_of_a_function_exist_in_kernels_without_it(function: KernelFunction) -> None:
    assert {*TABLE.defined_in[str(function.elsewhere)]} - {*TABLE.defined_in[str(function)]}


def test_the_table_has_no_other_function() -> None:
    assert [*TABLE.defined_in] == [str(function) for function in FUNCTIONS], (
        "the table is out of date: run `make kernel-functions`"
    )


def test_the_range_of_a_function_is_checked() -> None:
    versions = ("6.1.192", "6.12.118", "7.3.4")
    assert not claimed(KernelFunction("mm/a.c", "f"), (), versions), "a function that no version has must be refused"
    assert not claimed(KernelFunction("mm/a.c", "f"), versions[1:], versions)
    assert not claimed(KernelFunction("mm/a.c", "f", since="6.12"), versions, versions)
    assert not claimed(KernelFunction("mm/a.c", "f", since="6.12"), versions[1:2], versions)
    assert claimed(KernelFunction("mm/a.c", "f", since="6.12", until="6.12"), versions[1:2], versions)
    assert claimed(KernelFunction("mm/a.c", "f", until="6.12"), versions[:2], versions)


def test_the_table_does_not_depend_on_the_order_of_sources() -> None:
    one, *others = FUNCTIONS
    table = Table.of([Source("6.12.118", frozenset(FUNCTIONS)), Source("6.1.192", frozenset(others))])
    assert table.versions == ("6.1.192", "6.12.118")
    assert table.defined_in[str(one)] == ("6.12.118",)
    assert table.defined_in[str(others[0])] == table.versions


# --- the module and the scenarios ----------------------------------------------------------------


def test_every_value_has_the_name_of_its_function() -> None:
    values = {name: value for name, value in vars(kernel_functions).items() if isinstance(value, KernelFunction)}
    assert [name for name, value in values.items() if value.name != name] == []


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_no_scenario_has_a_function_in_a_string(path: Path) -> None:
    words = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
    assert [word for word in words if isinstance(word, str) and IN_A_STRING.fullmatch(word)] == []


def test_every_function_of_a_known_bug_is_one_of_them() -> None:
    names = {str(function) for function in FUNCTIONS}
    assert [bug.id for bug in ledger_of(ROOT / "guest_tests") if bug.function not in names] == []


def test_every_function_is_used() -> None:
    text = "".join(path.read_text() for path in SCENARIOS)
    named = [vars(kernel_functions)[name] for name in re.findall(r"\bfn\.(\w+)", text)]
    used = {str(one) for value in named for one in (value.values() if isinstance(value, Mapping) else [value])}
    used |= {bug.function for bug in ledger_of(ROOT / "guest_tests")}
    used |= {str(function.elsewhere) for function in FUNCTIONS if str(function) in used}
    assert [str(function) for function in FUNCTIONS if str(function) not in used] == []


# --- finding definitions -------------------------------------------------------------------------

SOURCE = """\
/* int commented(void) { } */
// int commented(void) { }
static const char *words = "int quoted(void) {";
int prototype(int a, int b);
extern int declared(void) __must_check;
#define macro(a) { a; }
int one_line(void) { return called(1); }
static inline pte_t pte_wrprotect(pte_t pte)
{
	called(pte);
}
static __always_inline __must_check unsigned long
raw_copy(void *dst, const void *src)
{
}
struct vm_area_struct *pointer(struct a *a,
				int (*callback)(struct b *, int),
				int c)
	__must_hold(&a->lock) __releases(a->lock)
{
}
oldest(void)
{
}
SYSCALL_DEFINE3(msync, unsigned long, start, size_t, len, int, flags)
{
}
static SYSCALL_DEFINE0(nothing)
{
}
COMPAT_SYSCALL_DEFINE1(compat, int, a)
{
}
DEFINE_SPINLOCK(lock);
static DEFINE_MUTEX(mutex);
EXPORT_SYMBOL_GPL(exported);
int not_prefix_pud(void) { }
int unfinished(void
"""


@pytest.mark.parametrize(
    "name", ["one_line", "pte_wrprotect", "raw_copy", "pointer", "oldest", "msync", "nothing", "compat"]
)
def test_a_definition_is_found(name: str) -> None:
    line = definition_line(SOURCE, name)
    assert line is not None
    assert name in SOURCE.splitlines()[line - 1]


@pytest.mark.parametrize(
    "name",
    [
        *("commented", "quoted", "prototype", "declared", "macro", "called", "callback", "lock", "mutex", "exported"),
        *("prefix_pud", "one", "unfinished", "absent"),
    ],
)
def test_only_definitions_are_found(name: str) -> None:
    assert definition_line(SOURCE, name) is None
