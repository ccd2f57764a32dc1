"""How pytest shows a failed test: both sides of a comparison, what ended the test, and no source of hugepfn itself."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from types import TracebackType

import pytest

from harness.assertion.explain import explain
from harness.assertion.history import History
from harness.assertion.source import is_library, is_ours, next_claim, source_of
from harness.claims import Claims
from harness.ending import explain as explain_in_one_line
from harness.errors import HugepfnError, KernelError, RunBroken
from harness.machine.vm import VM
from harness.pagetable import Bits, Entry, Leaf
from harness.verdict import mismatch_words, words

_ROWS_MAX = 4
_COMPARED = pytest.StashKey[tuple[object, object]]()

#: In a session's stash: show hugepfn's own frames, as hugepfn's own tests want and as ``--full-trace`` does.
OWN_FRAMES_SHOWN = pytest.StashKey[bool]()
_HIDDEN = ("hugepfn", "hugepfn's own frames are hidden; --full-trace shows them")


def pytest_assertrepr_compare(config: pytest.Config, op: str, left: object, right: object) -> list[str] | None:
    """Show entries, leaves and bits by the names of their bits, and keep both sides for the broken claim."""
    config.stash[_COMPARED] = (left, right)
    for kind in (Entry, Leaf, Bits):
        if isinstance(left, kind) and isinstance(right, kind):
            return mismatch_words.compared(op, left, right)
    return None


def compared(config: pytest.Config) -> tuple[object, object] | None:
    """Return both sides of the comparison that failed last, the first time it is called."""
    found = config.stash.get(_COMPARED, None)
    if found is not None:
        del config.stash[_COMPARED]
    return found


def history_of(machine: VM | None) -> History:
    """Return the stops of a test's runs so far."""
    runs = machine.runs if machine is not None else []
    if not runs:
        return History()
    last = runs[-1]
    hung = [last.hung] if last.hung is not None else []
    return History([*last.snapshots, *hung], [at for run in runs[:-1] for at in run.snapshots], last.ended)


def told(error: BaseException, item: pytest.Item, machine: VM | None, claims: Claims) -> str:
    """Return what ended a test outside of its claims, in a claim's form; "" if the error's own message suffices.

    For an assertion: whose entry it was about, and the statement. For a kernel that died or hangs: the entries at the
    last stop, and the next claim of the test.
    """
    if isinstance(error, AssertionError) and not isinstance(error, RunBroken):
        mismatch = explain(error, history_of(machine), compared(item.config))
        shown = mismatch_words.lines(mismatch) if mismatch is not None else str(error).splitlines()
        return "\n".join([*shown, *_statement(error), *_decided(item)])
    if machine is None or not machine.runs:
        probed = isinstance(error, RunBroken) and not (machine is not None and machine.kernel_troubles())
        return "\n".join([str(error), f"  {words.BEFORE_PROGRAM}", *_decided(item)]) if probed else ""
    if not isinstance(error, KernelError | RunBroken):
        return ""
    following = next_claim(error, claims)
    by = [words.on_the_way_to(*following)] if following is not None else _decided(item)
    last = mismatch_words.entry_lines(history_of(machine).last(_ROWS_MAX))
    return "\n".join([*str(error).splitlines(), *(f"  {line}" for line in last), *by])


def hide_own_frames(config: pytest.Config, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
    """Leave only the test's frames in the traceback that pytest shows, and in those of the errors that led to it.

    The error keeps its own traceback: :mod:`harness.assertion` reads it.
    """
    if _own_frames_shown(config):
        return
    visible = _visible(excinfo.value.__traceback__)
    excinfo.traceback = type(excinfo.traceback)(visible if visible is not None else ())
    error, seen = excinfo.value, {id(excinfo.value)}
    while (before := error.__cause__ or error.__context__) is not None and id(before) not in seen:
        before.__traceback__ = _visible(before.__traceback__)
        error = before
        seen.add(id(error))


def show_without_own_source(item: pytest.Item, error: BaseException, report: pytest.TestReport) -> None:
    """Replace what pytest shows of an error that hugepfn's code raised, unless its own frames are to be shown."""
    if _own_frames_shown(item.config):
        return
    if isinstance(error, HugepfnError):
        report.longrepr = in_short(error, item)
    elif report.failed and _ends_in_own_frame(error):
        if not source_of(error):  # one of our fixtures, before the test began
            report.longrepr = explain_in_one_line(error)
        else:
            report.sections.append(_HIDDEN)


def in_short(error: HugepfnError, item: pytest.Item) -> str:
    """Return the message of an error, and the statement of the test at which it was raised."""
    if isinstance(error, AssertionError) and not isinstance(error, RunBroken):
        return told(error, item, None, Claims())
    return "\n".join([f"{type(error).__name__}: {error}", *_statement(error)])


def _own_frames_shown(config: pytest.Config) -> bool:
    return bool(config.getoption("fulltrace", False)) or config.stash.get(OWN_FRAMES_SHOWN, False)


def _statement(error: BaseException) -> list[str]:
    return [f"  {source}"] if (source := source_of(error)) else []


def _visible(trace: TracebackType | None) -> TracebackType | None:
    """Return a traceback without frames of hugepfn, and without those of a library that hugepfn called."""
    kept, below_ours = [], False
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        below_ours = below_ours or is_ours(filename)
        if not is_ours(filename) and not (below_ours and is_library(filename)):
            kept.append(trace)
        trace = trace.tb_next
    found: TracebackType | None = None
    for one in reversed(kept):
        found = TracebackType(found, one.tb_frame, one.tb_lasti, one.tb_lineno)
    return found


def _ends_in_own_frame(error: BaseException) -> bool:
    """Return whether an error was raised by hugepfn, or by a library that hugepfn called."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    while files and is_library(files[-1]):
        files.pop()
    return bool(files) and is_ours(files[-1])


def _decided(item: pytest.Item) -> list[str]:
    """Return the line about the kernel functions that the test's marker names."""
    marker = item.get_closest_marker("decided_by")
    named = [one.values() if isinstance(one, Mapping) else (one,) for one in marker.args] if marker is not None else []
    functions = dict.fromkeys(str(function) for several in named for function in several)
    return [words.decided_by(list(functions))] if functions else []
