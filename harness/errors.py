"""Every error that hugepfn raises on purpose.

There is one root with four families. The family decides the exit status of the command (:class:`ExitCode`):

* :class:`UsageError`: you asked for something that does not exist or makes no sense.
* :class:`MachineryError`: hugepfn, QEMU, the network or this host failed, which says nothing about the kernel.
* :class:`KernelError`: the kernel under test did not boot, died, or did not get to the expected place.
* :class:`ClaimFailed`: the kernel ran, and a claim or an invariant does not hold.

A message says what failed, what was expected or the reason, and what to do next.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self


class ExitCode(enum.IntEnum):
    """Exit status of the ``hugepfn`` command, and what it means.

    1 is a verdict about a kernel, and nothing else has it. A verdict (1) takes precedence over something that is not
    known (3). ``exec`` and ``ssh`` return the exit status of their program.
    """

    meaning: str

    OK = 0, "all claims held"
    CLAIM_FAILED = (
        1,
        "a claim failed or the kernel died (compare: they differ; series: something changes; dmesg: the log has some)",
    )
    USAGE = 2, "usage"
    MACHINERY = (
        3,
        "no verdict: the machinery failed, results could not be written, (series) a patch does not build, or (bisect) "
        "more than one commit is left",
    )
    CANNOT_TELL = 125, "check alone: the commit cannot be judged, and git skips it"
    STOP = 128, "check alone: no verdict, and git bisect stops"
    INTERRUPTED = 130, "interrupted"

    def __new__(cls, value: int, meaning: str = "") -> Self:
        """Make a status with its meaning."""
        member = int.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    def without(self, lost: object) -> ExitCode:
        """Return this status, or MACHINERY if something was lost (a file, a stream); a known verdict (1) stays."""
        return ExitCode.MACHINERY if lost and self is not ExitCode.CLAIM_FAILED else self


class HugepfnError(Exception):
    """The root of all errors of hugepfn."""

    exit_code: ExitCode = ExitCode.MACHINERY


class UsageError(HugepfnError):
    """You asked for something that does not exist or makes no sense."""

    exit_code = ExitCode.USAGE


class KernelBuildError(UsageError):
    """A source does not compile, or not with the requested configuration.

    The source is at fault and not this host, and nothing ran, so there is no verdict. A bisection skips such a commit.

    :ivar log: the whole output of the build; None if nothing was built.
    """

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class MachineryError(HugepfnError):
    """hugepfn, QEMU, the network or this host failed: no verdict about the kernel."""

    exit_code = ExitCode.MACHINERY


class PremiseNotMet(MachineryError):
    """This kernel or machine does not have what a scenario needs. The scenario is skipped with the reason."""


class CannotKnow(PremiseNotMet):
    """This machine cannot show what a scenario is about, whatever the kernel does. The scenario is skipped."""


class CompileError(MachineryError):
    """A guest program does not compile; the message has the compiler's first error."""


class ProtocolError(MachineryError):
    """Host and guest disagree about their protocol: a bug of hugepfn or of a guest program, not of the kernel."""


class AgentRefused(MachineryError):
    """The agent in the guest could not do what the host asked for.

    :ivar errno: of the call that failed in the guest, as in :mod:`errno`.
    """

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class EmulatorError(MachineryError):
    """QEMU executed instructions that are not in the guest's memory. Not the kernel's fault; the test runs again."""


class MachineStopped(MachineryError):
    """QEMU has stopped the machine by itself, for instance because of an internal error of KVM."""


class QemuRefused(MachineryError):
    """QEMU answered a command with an error."""


class RestoreError(MachineryError):
    """QEMU cannot restore a saved machine, or cannot save one."""


class KernelError(HugepfnError):
    """The kernel under test did not boot, died, or did not get to the expected place."""

    exit_code = ExitCode.CLAIM_FAILED


class BootError(KernelError):
    """The kernel did not reach the agent.

    :ivar exit_status: QEMU's exit status; None if it was still running.
    :ivar console_tail: the last lines of the kernel log.
    """

    def __init__(self, message: str, *, exit_status: int | None, console_tail: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.console_tail = console_tail


class KernelDied(KernelError):
    """The kernel oopsed, panicked, or QEMU ended while a program was running."""


class DeadlineError(KernelError):
    """Something did not happen in the guest in time; the message says what, and where the guest was."""


class GuestProgramError(KernelError):
    """A guest program did not pass: a failed test, a signal, an exit status, a missing plan.

    :ivar signal: that ended it, such as "SIGBUS"; "" if it was none.
    """

    def __init__(self, message: str, *, signal: str = "") -> None:
        super().__init__(message)
        self.signal = signal


class ClaimFailed(HugepfnError, AssertionError):
    """A claim or an invariant about page-table entries does not hold."""

    exit_code = ExitCode.CLAIM_FAILED


class NoEntry(ClaimFailed):
    """Nothing is mapped at the place of a requested leaf.

    ``checkpoint``, ``process``, ``mapping`` and ``offset`` (in bytes from the start of the mapping) are the place.
    """

    def __init__(self, message: str, *, checkpoint: str, process: str, mapping: str, offset: int) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint
        self.process = process
        self.mapping = mapping
        self.offset = offset


class GivenUp(ClaimFailed):
    """An access of a guest program did not end, and was given up: it hangs.

    ``access`` is its name in the program, and ``checkpoint`` the next checkpoint after it.
    """

    def __init__(self, message: str, *, access: str, checkpoint: str) -> None:
        super().__init__(message)
        self.access = access
        self.checkpoint = checkpoint


class RunBroken(ClaimFailed):
    """A run broke an invariant, or the kernel complained; the run has both as values."""


#: Errors for which a kernel is to blame. While a machine comes up, either means that the kernel cannot start; the probe
#: raises ClaimFailed.
KERNELS_FAULT = (KernelError, ClaimFailed)


def did_you_mean(word: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """Return the text after a name that does not exist: ``; did you mean 'fork'?``, or ``;`` if no name is close.

    :param shown: returns how a name is shown.
    """
    import difflib

    close = difflib.get_close_matches(word, list(known), n=2)
    return f"; did you mean {' or '.join(repr(shown(name)) for name in close)}?" if close else ";"
