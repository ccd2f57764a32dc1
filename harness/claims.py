"""The value of the fixture ``claim``: statements about entries. A broken one does not hide the next."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from harness.assertion.explain import explain
from harness.assertion.history import History
from harness.assertion.source import source_of
from harness.errors import ClaimFailed, HugepfnError, KernelError
from harness.kernel_functions import KernelFunction
from harness.pagetable import NO_BITS, Bits
from harness.verdict import Claim, Outcome, mismatch_words, words

_HARNESS = Path(__file__).resolve().parent
_ROWS_MAX = 4  # number of entries that are shown for a claim that mentions none


def is_our_bug(error: BaseException) -> bool:
    """Return whether an assertion in hugepfn's own code failed, which says nothing about the kernel."""
    frames = traceback.extract_tb(error.__traceback__)
    own = bool(frames) and _HARNESS in Path(frames[-1].filename).parents
    return own and isinstance(error, AssertionError) and not isinstance(error, HugepfnError)


class Claims:
    """Collects the claims of a test. A broken claim is recorded, the test goes on, and fails at its end.

    ::

        with claim("the child keeps the dirty bit", by=kernel_functions.copy_huge_pmd):
            assert child.dirty
    """

    def __init__(
        self,
        history: Callable[[], History] = History,
        on_broken: Callable[[], None] = lambda: None,
        early: Callable[[], Bits] = lambda: NO_BITS,
        compared: Callable[[], tuple[object, object] | None] = lambda: None,
    ) -> None:
        """:param history: returns the stops so far.
        :param on_broken: called at each broken claim, before the test goes on.
        :param early: returns the bits that the CPU of this machine may set in an entry without an access.
        :param compared: returns both sides of the comparison that failed last.
        """
        self._history = history
        self._on_broken = on_broken
        self._early = early
        self._compared = compared
        self.made: list[Claim] = []
        self.failure: BaseException | None = None  # raised only because claims do not hold

    @contextmanager
    def __call__(self, name: str, by: KernelFunction | str = "", clear: Bits = NO_BITS) -> Iterator[None]:
        """Make one claim: a block of assertions, which holds if none of them fails.

        An entry that does not exist (NoEntry) breaks the claim, too. A KernelError (the kernel died, a deadline passed)
        ends the test.

        :param name: the claim as a sentence.
        :param by: the kernel function that decides it (harness.kernel_functions), or words for what else decides it.
        :param clear: give these bits if the claim is only that they are clear. If the CPU may set one of them without
            an access, a claim that does not hold counts as not known.
        """
        decided_by = str(by)
        try:
            yield
        except AssertionError as error:
            if is_our_bug(error):
                raise
            if clear & self._early():
                self.made.append(self._claim(name, Outcome.SKIPPED, decided_by))
                return
            self._break(name, decided_by, error)
            self._on_broken()
        except KernelError as error:
            self.made.append(self._claim(name, Outcome.FAILED, decided_by, str(error)))
            raise
        else:
            self.made.append(self._claim(name, Outcome.PASSED, decided_by))

    def _claim(self, name: str, outcome: Outcome, decided_by: str, message: str = "") -> Claim:
        return Claim(name, outcome, decided_by, message, checkpoint=self._history().checkpoint)

    def _break(self, name: str, decided_by: str, error: AssertionError) -> None:
        history = self._history()
        mismatch = explain(error, history, self._compared())
        shown = mismatch_words.lines(mismatch) if mismatch is not None else [str(error) or source_of(error)]
        if mismatch is None or mismatch.entry is None:
            entries = history.last(_ROWS_MAX) if mismatch is None else history.around(mismatch, _ROWS_MAX)
            shown += [f"  {line}" for line in mismatch_words.entry_lines(entries)]
        message = "\n".join(shown)
        self.made.append(replace(self._claim(name, Outcome.FAILED, decided_by, message), mismatch=mismatch))

    @property
    def broken(self) -> list[Claim]:
        """The claims that do not hold."""
        return [claim for claim in self.made if claim.outcome is Outcome.FAILED]

    @property
    def verdict(self) -> str:
        """The broken claims in words, grouped by cause, with the kernel function that decides; "" if all hold."""
        return "\n".join(words.told(self.made))

    def raise_if_broken(self) -> None:
        """Raise an error if a claim does not hold: for scripts. In pytest, the test fails without this.

        :raises ClaimFailed: a claim does not hold.
        """
        if self.broken:
            self.failure = ClaimFailed(self.verdict)
            raise self.failure
