"""A machine whose kernel is watched during a test: by its runs, and outside of them."""

from __future__ import annotations

from collections.abc import Mapping

from harness.errors import MachineryError, RunBroken
from harness.machine.live import LiveMachine
from harness.observe.outside import Outside
from harness.observe.run import GuestRun
from harness.verdict import Taint, parse_taint, scan, words
from harness.verdict.expected.complaints import is_expected, taint_of, without_expected
from harness.verdict.invariants import Invariant
from harness.verdict.log.troubles import NO_TAINT, KernelComplaint, KernelTroubles


class WatchedMachine(LiveMachine):
    """A machine, the runs of its programs, and what need not hold in them."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[GuestRun] = []
        self.waived: Mapping[Invariant, str] = {}  # invariants that need not hold, and why (@pytest.mark.waive)
        self.expected_complaints: tuple[str, ...] = ()  # their titles (@pytest.mark.expect_complaint)
        self._accepted = NO_TAINT  # of expected complaints in earlier tests
        self._outside: Outside | None = None

    @property
    def boot_taint(self) -> Taint:
        """The taint that says nothing about a test: that of the boot, and what earlier tests expected."""
        return parse_taint(self.ready["taint"]) | self._accepted

    def begin_test(self) -> None:
        """Watch the kernel from now on, also where no program is running."""
        self._outside = Outside(self.qemu, self.agent, self.boot_taint)

    def end_test(self) -> None:
        """Read the kernel's log and taint up to now."""
        if self._outside is not None:
            self.on_loop(self._outside.settle([run.kernel for run in self.runs]))
            self._accepted |= self._expected_taint()

    def check_kernel(self) -> None:
        """Check that the kernel did not complain during the test; call it after :meth:`end_test`.

        :raises RunBroken: it did.
        :raises MachineryError: its log could not be read.
        """
        seen = self.kernel_troubles()
        if found := [line for one in seen for line in words.troubles(one)]:
            raise RunBroken("\n".join(found))
        if self._outside is not None and (gap := self.judged(self._outside_troubles()).gap):
            raise MachineryError(gap)

    def kernel_troubles(self) -> tuple[KernelTroubles, ...]:
        """Return what the kernel itself found wrong: once per run, and once outside of them if there was anything."""
        outside = self.judged(self._outside_troubles())
        return (*(run.kernel_troubles() for run in self.runs), *([outside] if outside != KernelTroubles() else []))

    def judged(self, troubles: KernelTroubles) -> KernelTroubles:
        """Return what remains of them if the complaints that this test expects are taken away."""
        if not self.expected_complaints:
            return troubles
        return without_expected(troubles, self.expected_complaints, self._expected_taint())

    def _outside_troubles(self) -> KernelTroubles:
        if self._outside is None:
            return KernelTroubles()
        return self._outside.troubles([run.kernel for run in self.runs])

    def _expected_taint(self) -> Taint:
        if not self.expected_complaints:
            return NO_TAINT
        logged = map(KernelComplaint.of, scan(self.qemu.log.text))
        return taint_of(one for one in logged if is_expected(one.title, self.expected_complaints))
