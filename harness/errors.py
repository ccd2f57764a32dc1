"""Every error that hugepfn raises on purpose.

One root, four families, and the family decides the exit status of the command (:class:`ExitCode`):

* :class:`UsageError`: the user asked for something that does not exist or makes no sense.
* :class:`MachineryError`: the driver, QEMU, the network or this host failed; it says nothing about the kernel.
* :class:`KernelError`: the kernel under test did not boot, died, or never got where it was expected.
* :class:`ClaimFailed`: the kernel ran, and did something else than a claim or an invariant says.

A message says what happened, what was expected and what to do next.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self


class ExitCode(enum.IntEnum):
    """Exit status of the ``hugepfn`` command, and what it means.

    1 is a verdict about a kernel, and nothing else ends with it. Where both are so, a known verdict (1) goes before
    something that is not known (3). ``exec`` and ``ssh`` end as their program does.
    """

    meaning: str

    OK = 0, "all claims held"
    CLAIM_FAILED = (
        1,
        "a claim failed or the kernel died (compare: they differ; series: something changes; dmesg: the log has some)",
    )
    USAGE = 2, "usage"
    MACHINERY = 3, "no verdict: the machinery failed, results could not be written, or (series) a patch does not build"
    CANNOT_TELL = 125, "check alone: the commit cannot be judged, and git skips it"
    STOP = 128, "check alone: no verdict, and git bisect stops"
    INTERRUPTED = 130, "interrupted"

    def __new__(cls, value: int, meaning: str = "") -> Self:
        """A status and its meaning."""
        member = int.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    def without(self, lost: object) -> ExitCode:
        """This status, where something besides was lost: a file, a stream, a part of the run."""
        return ExitCode.MACHINERY if lost and self is not ExitCode.CLAIM_FAILED else self


class HugepfnError(Exception):
    """Root of every error of hugepfn."""

    exit_code: ExitCode = ExitCode.MACHINERY


class UsageError(HugepfnError):
    """What was asked for does not exist or makes no sense."""

    exit_code = ExitCode.USAGE


class KernelBuildError(UsageError):
    """A source that was asked for gives no kernel: it does not compile, or not with the configuration wanted.

    The user's input is at fault, not this machine, and nothing ran: neither a verdict nor a broken driver. A step of a
    bisection skips such a commit.

    :ivar log: the build's whole output, None where nothing was built.
    """

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


class MachineryError(HugepfnError):
    """The driver or this host failed: no verdict about the kernel."""

    exit_code = ExitCode.MACHINERY


class PremiseNotMet(MachineryError):
    """This kernel or machine has not got what a scenario is about: a skip, with the reason. No verdict."""


class CannotKnow(PremiseNotMet):
    """This machine cannot show what a scenario is about, whatever the kernel does: a skip that says so."""


class CompileError(MachineryError):
    """A guest program does not compile; the message holds the compiler's first words."""


class ProtocolError(MachineryError):
    """Host and guest disagree about the words they exchange: a bug of hugepfn, not of the kernel."""


class AgentRefused(MachineryError):
    """The agent in the guest could not do what the host asked for.

    :ivar errno: of what failed there, as in :mod:`errno`.
    """

    def __init__(self, message: str, errno: int) -> None:
        super().__init__(message)
        self.errno = errno


class EmulatorError(MachineryError):
    """QEMU executed something that is not in the guest's memory: not the kernel's fault, and gone the next time."""


class MachineStopped(MachineryError):
    """QEMU has stopped the machine by itself, for an internal error of KVM's, for instance."""


class QemuRefused(MachineryError):
    """QEMU answered a command with an error."""


class RestoreError(MachineryError):
    """QEMU does not bring a saved machine back, or cannot save one."""


class KernelError(HugepfnError):
    """The kernel under test did not boot, died, or never got where it was expected."""

    exit_code = ExitCode.CLAIM_FAILED


class BootError(KernelError):
    """The kernel did not reach the agent.

    :ivar exit_status: QEMU's exit status, None while it was still running.
    :ivar console_tail: the last lines of the kernel log.
    """

    def __init__(self, message: str, *, exit_status: int | None, console_tail: str) -> None:
        super().__init__(message)
        self.exit_status = exit_status
        self.console_tail = console_tail


class KernelDied(KernelError):
    """The kernel oopsed, panicked, or QEMU ended while a program was running."""


class DeadlineError(KernelError):
    """Something expected of the guest did not happen in time; the message names what and where it stood."""


class GuestProgramError(KernelError):
    """A guest program ended otherwise than it should have: a signal, an exit status, a missing plan."""


class ClaimFailed(HugepfnError, AssertionError):
    """A claim or an invariant about page-table entries does not hold."""

    exit_code = ExitCode.CLAIM_FAILED


class NoEntry(ClaimFailed):
    """Nothing is mapped where an entry was asked for.

    :ivar offset: in bytes from the start of the mapping.
    """

    def __init__(self, message: str, *, checkpoint: str, process: str, mapping: str, offset: int) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint
        self.process = process
        self.mapping = mapping
        self.offset = offset


class GivenUp(ClaimFailed):
    """An access of a guest program did not end, and was given up.

    :ivar access: what the program calls it.
    :ivar checkpoint: the one that follows it.
    """

    def __init__(self, message: str, *, access: str, checkpoint: str) -> None:
        super().__init__(message)
        self.access = access
        self.checkpoint = checkpoint


class RunBroken(ClaimFailed):
    """A program's run broke an invariant, or the kernel complained: the run has both as values."""


#: What a kernel is to blame for. While a machine comes up, either means that the kernel cannot start: ClaimFailed is
#: raised by the probe.
KERNELS_FAULT = (KernelError, ClaimFailed)


def did_you_mean(word: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """What follows on a name that does not exist: ``; did you mean 'fork'?``, or ``;`` if nothing comes close.

    :param shown: how a name is shown.
    """
    close = difflib.get_close_matches(word, list(known), n=2)
    return f"; did you mean {' or '.join(repr(shown(name)) for name in close)}?" if close else ";"
