"""How a guest program ended."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice

from harness.errors import GivenUp, ProtocolError
from harness.guest import bounds
from harness.guest.job import ExitStatus
from harness.verdict import KtapOutcome, Report

#: KTAP's exit status for a run whose precondition is not met (tools/testing/selftests/kselftest.h, KSFT_SKIP).
SKIP_STATUS = 4
_COUNT = re.compile(r"-?[0-9]{1,9}")
_VALUE = re.compile(r"^# value ([^\s=]+)=(.*)$", re.MULTILINE)
_CHECKPOINT = re.compile(r"^# checkpoint (\S+)$", re.MULTILINE)


def values_in(stdout: str) -> dict[str, str]:
    """Return what a program has reported with ktap_value() so far; see :attr:`RunResult.values`."""
    return {one[1]: one[2] for one in islice(_VALUE.finditer(stdout), bounds.VALUES_MAX)}


@dataclass(frozen=True, slots=True, repr=False)
class RunResult:
    """How a guest program ended: what it reported (KTAP), how it exited, what it printed."""

    report: Report
    """Its KTAP (Documentation/dev-tools/ktap.rst)."""
    exit: ExitStatus
    """Its exit status, or the signal that killed it."""
    stdout: str
    """Everything on standard output, KTAP included."""
    stderr: str
    """Everything on standard error."""

    def __repr__(self) -> str:
        return f"<{self.reason or 'passed'}, reported {self.values or 'nothing'}>"

    @property
    def passed(self) -> bool:
        """Whether every planned test was reported and passed, and the program exited with 0."""
        return self.report.outcome is KtapOutcome.PASSED and self.exit.ok

    @property
    def values(self) -> dict[str, str]:
        """What the program reported with ktap_value(), by name; the last value of each of the first 10,000."""
        return values_in(self.stdout)

    def checkpoints_around(self, name: str) -> tuple[str, str]:
        """Return the checkpoints before and after the last report of a value; "" if there was none."""
        found = [one.start() for one in _VALUE.finditer(self.stdout) if one[1] == name]
        if not found:
            return "", ""
        passed, to_come = (_CHECKPOINT.findall(part) for part in (self.stdout[: found[-1]], self.stdout[found[-1] :]))
        return passed[-1] if passed else "", to_come[0] if to_come else ""

    def faults(self, name: str, before: str) -> int:
        """Return the number of faults that an access took: hp_write_faults() or hp_read_faults(), and ktap_value().

        :param name: the name of the value.
        :param before: the checkpoint that follows the access, for the message.
        :raises GivenUp: the access did not end: it hangs.
        :raises ProtocolError: the program did not report such a number.
        """
        said = self.values.get(name, "")
        if not _COUNT.fullmatch(said):
            raise ProtocolError(f"the program's value {name} is {bounds.shown(said)}; expected a number of faults")
        count = int(said)
        if count < 0:
            access = name.removesuffix("-faults")
            raise GivenUp(
                f"a hang before checkpoint {before!r}: {access} was abandoned after 10,000 faults",
                access=access,
                checkpoint=before,
            )
        return count

    @property
    def skipped(self) -> bool:
        """Whether the program reported that its precondition is not met."""
        return self.report.outcome is KtapOutcome.SKIPPED and self.exit.status in (0, SKIP_STATUS)

    @property
    def lacks_device(self) -> bool:
        """Whether it was skipped because this guest has no device for it (guest_tests/lib/vfio.c no_device())."""
        return self.skipped and self.values.get("lacks") == "device"

    @property
    def reason(self) -> str:
        """Why it did not pass, in one line; "" if it passed."""
        if self.passed:
            return ""
        if self.exit.signal is not None:
            return f"killed by {self.exit.signal_name}"
        if self.report.reason:
            return self.report.reason
        return f"{self.report.outcome.value}, {self.exit}: {(self.stderr or self.stdout).strip()[-200:]}"
