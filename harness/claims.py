"""The ``claim`` fixture's value: sentences about entries, each kept or broken, none hiding the next."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import ClaimFailed, HugepfnError, KernelError
from harness.kernel_functions import KernelFunction
from harness.pagetable import NO_BITS, Bits
from harness.verdict import Claim, Outcome

_HARNESS = Path(__file__).resolve().parent


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
        evidence: Callable[[], str] = lambda: "",
        on_broken: Callable[[], None] = lambda: None,
        early: Callable[[], Bits] = lambda: NO_BITS,
    ) -> None:
        """:param on_broken: called at each broken claim, while everything is as the claim saw it.
        :param early: bits that the CPU of this machine may set in an entry that no access needed.
        """
        self._evidence = evidence
        self._on_broken = on_broken
        self._early = early
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
                self.made.append(Claim(name, Outcome.SKIPPED, decided_by))
                return
            evidence = self._evidence()
            message = str(error) + (f"\n{evidence}" if evidence else "")
            self.made.append(Claim(name, Outcome.FAILED, decided_by, message))
            self._on_broken()
        except KernelError as error:
            self.made.append(Claim(name, Outcome.FAILED, decided_by, str(error)))
            self.ended_by = error
            raise
        else:
            self.made.append(Claim(name, Outcome.PASSED, decided_by))

    @property
    def broken(self) -> list[Claim]:
        """Those that did not hold."""
        return [claim for claim in self.made if claim.outcome is Outcome.FAILED]

    @property
    def verdict(self) -> str:
        """Every broken claim, the kernel function that decides it, and what was seen; empty where all held."""
        return "\n".join(f"{one.name} [{one.kernel_function or 'kernel'}]: {one.message}" for one in self.broken)

    def raise_if_broken(self) -> None:
        """For scripts; the pytest fixture does this by itself.

        :raises ClaimFailed: a claim does not hold.
        """
        if self.broken:
            self.failure = ClaimFailed(self.verdict)
            raise self.failure
