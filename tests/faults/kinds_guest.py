"""Faults in the guest: its kernel dies or hangs, its programs crash, hang and flood."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from tests.faults.kind import Ending, Kind
from tests.faults.scene import Scene

OWN_TEST = Path(__file__).with_name("guest") / "misbehaving.py"
ARGV = ("run", str(OWN_TEST))
#: The checkpoints of misbehave.c after which a fault may happen; at the sixth, the test waits for the program's end.
CHECKPOINTS = 5
_KERNEL, _PROGRAM = "The kernel under test", "The guest program"


def doing(words: str, code: str = "", timeout_s: float = 30.0) -> Callable[[Scene], None]:
    """The preparation of a guest fault.

    :param words: arguments of misbehave.c, in which {seed} is a random number.
    :param code: in hexadecimal digits; what the kernel runs instead of a system call.
    """

    def prepare(scene: Scene) -> None:
        scene.environment |= {
            "FAULT_AT": str(scene.choose("checkpoint", 1, CHECKPOINTS)),
            "FAULT_ARGS": words.replace("{seed}", str(scene.random.randint(1, 1 << 30))),
            "FAULT_CODE": code,
            "FAULT_TIMEOUT_S": str(timeout_s),
        }

    return prepare


def _died(words: str) -> tuple[Ending, ...]:
    return (Ending(1, (rf"the kernel died: .*{words}", "after checkpoint c[1-5]"), "failed", "died"),)


def _kernel(name: str, done: str, code: str, words: str) -> Kind:
    prepare = doing("--do=system-call", code)
    return Kind(name, _KERNEL, done, _died(words), ARGV, prepare, logs=False)


def _program(name: str, done: str, words: str, *endings: Ending) -> Kind:
    return Kind(name, _PROGRAM, done, endings, ARGV, doing(words), logs=False)


def _ended(words: str, signal: str = "") -> Ending:
    return Ending(1, (words,), "failed", "program", signal)


#: Six seconds, or more on a slow host, where deadlines are longer.
NOTHING = r"nothing within \d[\d.]* s"


def _hang(*words: str) -> Ending:
    return Ending(1, (NOTHING, *words), "failed", "hang")


def _hangs(name: str, group: str, done: str, prepare: Callable[[Scene], None], patience_s: float, *words: str) -> Kind:
    endings = (_hang(*words), _BUSY)
    return Kind(name, group, done, endings, ARGV, prepare, patience_s=patience_s, runs=3, logs=False)


_NO_MESSAGE = Ending(1, ("the kernel powered off or reset without a message",), "failed", "died")
#: A hang is a hang only where QEMU has got its share of the CPUs.
_BUSY = Ending(3, ("the host is too busy",), "error")
_SPIN, _CLI_SPIN = "ebfe", "faebfe"
_TRIPLE = "4883ec1031c04889042448894424080f011c240f0b"  # lidt of 16 zero bytes on the stack, ud2

_EARLY = "ended before checkpoint 'c6'"
_MALFORMED = "1..x~ok ok~ok 99999999999999999999999999~    KTAP~1..-3~not~# SKIP~Bail out!~1..4294967296~"

KINDS = (
    Kind(
        "guest-panic",
        _KERNEL,
        "the program makes the kernel panic through sysrq",
        _died("Kernel panic - not syncing: sysrq triggered crash"),
        ARGV,
        doing("--do=sysrq --key=c"),
        logs=False,
    ),
    _kernel("guest-oops-null", "the kernel follows a NULL pointer", "31c0488b00", "NULL pointer dereference"),
    _kernel("guest-oops-opcode", "the kernel executes ud2", "0f0b", "(invalid opcode|kernel BUG)"),
    _kernel(
        "guest-oops-address",
        "the kernel follows a pointer that is not canonical",
        "48b80000000000000080488b00",
        "general protection fault",
    ),
    _kernel("guest-oops-divide", "the kernel divides by zero", "31c9f7f1", "divide error"),
    _kernel("guest-double-fault", "the kernel's stack pointer is zero", "31e450", "double fault"),
    Kind(
        "guest-triple-fault",
        _KERNEL,
        "the kernel has an exception without an IDT",
        (_NO_MESSAGE,),
        ARGV,
        doing("--do=system-call", _TRIPLE),
        logs=False,
    ),
    Kind(
        "guest-reset",
        _KERNEL,
        "the kernel resets the machine through the keyboard controller",
        (_NO_MESSAGE,),
        ARGV,
        doing("--do=system-call", "b0fee664f4ebfd"),
        logs=False,
    ),
    _hangs(
        "guest-hang",
        _KERNEL,
        "the kernel spins with interrupts disabled",
        doing("--do=system-call", _CLI_SPIN, 6.0),
        60,
    ),
    _hangs(
        "guest-soft-lockup",
        _KERNEL,
        "the kernel spins with interrupts enabled; the watchdog only tells of it",
        doing("--do=system-call --watchdog=0", _SPIN, 6.0),
        60,
        "soft lockup",
    ),
    Kind(
        "guest-soft-lockup-panic",
        _KERNEL,
        "the kernel spins with interrupts enabled, and panics because of its watchdog",
        _died("soft lockup"),
        ARGV,
        doing("--do=system-call --watchdog=1", _SPIN),
        logs=False,
    ),
    Kind(
        "guest-oom-panic",
        _KERNEL,
        "the program takes all memory, and the kernel panics because of it",
        _died("(panic_on_oom|invoked oom-killer|Out of memory|compulsory)"),
        ARGV,
        doing("--do=out-of-memory --panic=2"),
        sampled=False,
        logs=False,
    ),
    Kind(
        "program-oom",
        _PROGRAM,
        "the program takes all memory, and the kernel kills it",
        (_ended("killed by SIGKILL", "SIGKILL"),),
        ARGV,
        doing("--do=out-of-memory"),
        sampled=False,
        logs=False,
    ),
    _program(
        "program-sigsegv",
        "the program is killed by SIGSEGV",
        "--do=crash --signal=11",
        _ended("killed by SIGSEGV", "SIGSEGV"),
    ),
    _program(
        "program-sigbus",
        "the program is killed by SIGBUS",
        "--do=crash --signal=7",
        _ended("killed by SIGBUS", "SIGBUS"),
    ),
    _program(
        "program-exits",
        "the program exits before it has reported anything",
        "--do=leave --status=3",
        _ended(_EARLY),
    ),
    _hangs(
        "program-hangs",
        _PROGRAM,
        "the program sleeps for ever",
        doing("--do=hang", timeout_s=6.0),
        30,
        "last at checkpoint 'c[1-5]'",
    ),
    _hangs(
        "program-spins",
        _PROGRAM,
        "the program spins for ever in user mode",
        doing("--do=spin", timeout_s=6.0),
        30,
        "last at checkpoint 'c[1-5]'",
    ),
    _program(
        "ktap-endless",
        "the program prints KTAP without an end",
        "--do=print-endlessly",
        Ending(3, ("has printed more than 64 MiB",), "error"),
    ),
    _program("ktap-no-plan", "the program ends without a result for its plan", "--do=print --text=~", _ended(_EARLY)),
    _program(
        "ktap-malformed",
        "the program prints KTAP with broken plans, numbers, bytes and nesting",
        f"--do=print --text={shlex.quote(_MALFORMED)}",
        _ended(_EARLY),
    ),
)
