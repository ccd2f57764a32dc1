"""mincore() of a pfnmap: one answer for every page, whatever the level, and no entry changes."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

PAGES = {Level.PTE: 4, Level.PMD: 512, Level.PUD: 512 * 512}
WALKED_BY = {
    Level.PTE: fn.mincore_pte_range,
    Level.PMD: fn.mincore_pte_range,
    Level.PUD: fn.walk_pud_range,
}
#: The answers for 4K entries of a BAR: 0 if the walk skips a pfnmap, 1 if it looks at the entries.
ANSWERS = {"0*3": 0, "1*3": 1}


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.walk_page_test, fn.mincore_pte_range)
def test_mincore(vm: VM, level: Level, claim: Claims) -> None:
    """mincore() gives the same answer for a leaf's pages at every level, and changes no entry."""
    by = WALKED_BY[level]
    with vm.run("mincore", f"--level={level.label}") as guest:
        before = guest.until("before")["parent"]
        at = guest.until("asked")["parent"]
        with claim(f"the mapping is a {level.label}", by):
            assert at.leaf("bar").level is level
        with claim("no entry changes", by):
            assert [leaf.entry for leaf in at.leaves("bar")] == [leaf.entry for leaf in before.leaves("bar")]
        values = guest.result.values
        with claim("in anonymous memory, the written page is in core and the other is not", by):
            assert values["anon-vector"] == "1*1 0*1"
        with claim(
            "for 4K entries of a BAR it gives one answer: not in core, or, where it looks at the entries, in core", by
        ):
            assert values["pages-vector"] in ANSWERS
        with claim("for every page of a leaf it gives the answer for a 4K entry", by):
            assert values["errno"] == "0"
            assert values["vector"] == f"{ANSWERS.get(values['pages-vector'])}*{PAGES[level]}"
        with claim("a write still needs no fault", by):
            assert values["write-faults"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.mincore_unmapped_range)
def test_mincore_untouched(vm: VM, level: Level, claim: Claims) -> None:
    """mincore() of an untouched pfnmap says that nothing is in core, and makes no entry."""
    by = fn.mincore_unmapped_range
    with vm.run("mincore", f"--level={level.label}", "--touch=0") as guest:
        at = guest.until("asked")["parent"]
        with claim("no entry is made", by):
            assert at.leaves("bar") == ()
        with claim("no page is in core", by):
            assert guest.result.values["errno"] == "0"
            assert guest.result.values["vector"] == f"0*{PAGES[level]}"
        with claim("the first write still needs its fault", by):
            assert guest.result.values["write-faults"] == "1"
