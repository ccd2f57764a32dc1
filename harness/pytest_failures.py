"""A failed assertion of a test, as pytest tells it: the words of both sides, and what a test outside of claims says."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from harness.assertion.explain import explain
from harness.assertion.history import History
from harness.assertion.source import next_claim, source_of
from harness.claims import Claims
from harness.errors import KernelError, RunBroken
from harness.machine.vm import VM
from harness.pagetable import Bits, Entry, Leaf
from harness.verdict import mismatch_words, words

_ROWS_MAX = 4
_COMPARED = pytest.StashKey[tuple[object, object]]()


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: object, right: object) -> list[str] | None:
    """Entries, leaves and bits by the names of their bits; the two sides are kept for the claim that is broken."""
    config.stash[_COMPARED] = (left, right)
    for kind in (Entry, Leaf, Bits):
        if isinstance(left, kind) and isinstance(right, kind):
            return mismatch_words.compared(op, left, right)
    return None


def compared(config: pytest.Config) -> tuple[object, object] | None:
    """Both sides of the comparison that failed last; once."""
    found = config.stash.get(_COMPARED, None)
    if found is not None:
        del config.stash[_COMPARED]
    return found


def history_of(machine: VM | None) -> History:
    """The stops of a test's runs so far."""
    runs = machine.runs if machine is not None else []
    if not runs:
        return History()
    last = runs[-1]
    hung = [last.hung] if last.hung is not None else []
    return History([*last.snapshots, *hung], [at for run in runs[:-1] for at in run.snapshots], last.ended)


def told(error: BaseException, item: pytest.Item, machine: VM | None, claims: Claims) -> str:
    """What ended a test outside of its claims, as a claim would tell it; "" where the error's own words say it all.

    Of an assertion: whose entry it was about, and the statement. Of a kernel that died or hangs: the entries at the
    last stop, and the claim that the test was on its way to.
    """
    if isinstance(error, AssertionError) and not isinstance(error, RunBroken):
        mismatch = explain(error, history_of(machine), compared(item.config))
        shown = mismatch_words.lines(mismatch) if mismatch is not None else str(error).splitlines()
        return "\n".join([*shown, f"  {source_of(error)}", *_decided(item)])
    if machine is None or not machine.runs:
        return (
            "\n".join([str(error), f"  {words.BEFORE_PROGRAM}", *_decided(item)])
            if isinstance(error, RunBroken)
            else ""
        )
    if not isinstance(error, KernelError | RunBroken):
        return ""
    following = next_claim(error, claims)
    by = [words.on_the_way_to(*following)] if following is not None else _decided(item)
    last = mismatch_words.entry_lines(history_of(machine).last(_ROWS_MAX))
    return "\n".join([*str(error).splitlines(), *(f"  {line}" for line in last), *by])


def _decided(item: pytest.Item) -> list[str]:
    """The kernel functions that the test's marker names."""
    marker = item.get_closest_marker("decided_by")
    named = [one.values() if isinstance(one, Mapping) else (one,) for one in marker.args] if marker is not None else []
    functions = dict.fromkeys(str(function) for several in named for function in several)
    return [words.decided_by(list(functions))] if functions else []
