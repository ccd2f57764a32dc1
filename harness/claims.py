"""The ``claim`` fixture's value: sentences about entries, each kept or broken, none hiding the next."""

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
_ROWS_MAX = 4  # entries, for a claim that is about none


def is_our_bug(error: BaseException) -> bool:
    """Whether an assertion is one of hugepfn's own code: that says nothing about the kernel."""
    frames = traceback.extract_tb(error.__traceback__)
    own = bool(frames) and _HARNESS in Path(frames[-1].filename).parents
    return own and isinstance(error, AssertionError) and not isinstance(error, HugepfnError)


class Claims:
    """Collects claims. A broken one is recorded and the test goes on to the next; at its end it fails.

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
        """:param history: the stops so far.
        :param on_broken: called at each broken claim, while everything is as the claim saw it.
        :param early: bits that the CPU of this machine may set in an entry that no access needed.
        :param compared: both sides of the comparison that failed last.
        """
        self._history = history
        self._on_broken = on_broken
        self._early = early
        self._compared = compared
        self._said: dict[int, str] = {}  # by the number of the claim
        self.made: list[Claim] = []
        self.failure: BaseException | None = None  # what was raised because claims do not hold: it says nothing else
        self.ended_by: BaseException | None = None  # what ended a claim, and the test: the claim has its message

    @contextmanager
    def __call__(self, name: str, by: KernelFunction | str = "", clear: Bits = NO_BITS) -> Iterator[None]:
        """One claim, as a block of assertions.

        :param by: the kernel function that decides it (harness.kernel_functions), or words for what else does.
        :param clear: bits of which it says nothing but that they are clear. Where the CPU may have set them by itself,
            a claim that does not hold cannot be known.
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
            self.ended_by = error
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
        self._said[len(self.made)] = str(error)
        self.made.append(replace(self._claim(name, Outcome.FAILED, decided_by, message), mismatch=mismatch))

    @property
    def broken(self) -> list[Claim]:
        """Those that did not hold."""
        return [claim for claim in self.made if claim.outcome is Outcome.FAILED]

    @property
    def broken_as_said(self) -> list[tuple[Claim, str]]:
        """Those, each with what it shows and with the words of the assertion."""
        made = [(one, f"{one.message}\n{self._said.get(number, '')}") for number, one in enumerate(self.made)]
        return [(claim, said) for claim, said in made if claim.outcome is Outcome.FAILED]

    @property
    def verdict(self) -> str:
        """What broke each cause of the broken claims, and the kernel function that decides it; empty where all held."""
        return "\n".join(words.told(self.made))

    def raise_if_broken(self) -> None:
        """For scripts; the pytest fixture does this by itself.

        :raises ClaimFailed: a claim does not hold.
        """
        if self.broken:
            self.failure = ClaimFailed(self.verdict)
            raise self.failure
