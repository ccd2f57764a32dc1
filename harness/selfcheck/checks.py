"""``hugepfn selfcheck``: checks whether hugepfn can be trusted on this host, and prints one page of plain text.

Each check compares hugepfn with itself: two witnesses, a clone with a boot, one machine with another, KVM with TCG. No
check is a claim about the kernel. If a kernel breaks a check on several hosts, use ``hugepfn run`` to find out why.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from harness.config import MachineConfig
from harness.errors import ExitCode, HugepfnError, PremiseNotMet
from harness.events import Say
from harness.kernel import KernelImage
from harness.machine.vm import VM
from harness.observe.bar_bits import probe_bar
from harness.pagetable import LEAF_LEVELS, NO_BITS, Bits, Level, Observation, comparable
from harness.qemu.accel import kvm_proof
from harness.qemu.binary import find_qemu
from harness.qemu.spec import Accel, Device
from harness.selfcheck.host import Finding, State, host_findings

#: After this time, no further check starts. A running check has the deadlines of its boots and checkpoints.
LIMIT_S = 600.0
BAR_ROUNDS = 20
_PROGRAM_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Shape:
    """The kind of machine to check."""

    smp: int = 1
    append: tuple[str, ...] = ()
    clone: bool = True
    device: Device = Device.TESTDEV
    accel: Accel | None = None  # None: the default, KVM if it works

    def __str__(self) -> str:
        words = [f"{self.smp} vCPU{'s' if self.smp > 1 else ''}", *self.append]
        return ", ".join(words)


SHAPES = (Shape(), Shape(smp=4), Shape(append=("pti=on",)), Shape(append=("no5lvl",)))


class Specimen(Protocol):
    """What the checks need of a machine."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels of the leaves that its kernel makes for a BAR."""

    @property
    def device(self) -> Device:
        """The device that it really uses, see :func:`harness.observe.bar_bits.stand_in`."""

    @property
    def early(self) -> Bits:
        """The bits that its CPU may set without an access."""

    def seen(self, program: str, *args: str) -> list[Observation]:
        """Run a guest program to its end, and return what was seen at its checkpoints.

        :raises HugepfnError: it did not pass, or an invariant does not hold.
        """

    def bar_misses(self) -> Bits | None:
        """See :func:`harness.observe.bar_bits.probe_bar`."""


class Lab(Protocol):
    """The source of machines."""

    @property
    def kvm(self) -> str:
        """Return why KVM does not run guests; "" if it does."""

    def machine(self, shape: Shape) -> AbstractContextManager[Specimen]:
        """Return a machine of this kind."""


# --- the checks --------------------------------------------------------------------------------------


def check_calibration(lab: Lab) -> Finding:
    """The walk and pagemap agree on ordinary memory; all other checks rely on this."""
    with lab.machine(Shape()) as machine:
        entries = sum(len(machine.seen("calibrate", f"--memory={memory}")) for memory in ("anon", "shmem"))
    return Finding("calibration", State.OK, f"the walk and pagemap agree on {entries} entries of ordinary memory")


def check_fork(lab: Lab) -> Finding:
    """fork() works with a leaf of every level, and no invariant is violated."""
    with lab.machine(Shape()) as machine:
        levels = machine.levels
        for level in levels:
            found = {one.level for one in machine.seen("fork", f"--level={level.label}")}
            if level.label not in found:
                return Finding("fork", State.FAILED, f"{level.label}: the walk found {_words(found)}", _REPORT)
    said = f"seen at {', '.join(level.label for level in levels)}, and every invariant held"
    if levels != LEAF_LEVELS:
        return Finding("fork", State.NOTE, f"{said}; this kernel makes no larger leaf", "try a newer kernel: --kernel")
    return Finding("fork", State.OK, said)


def check_clone(lab: Lab, shape: Shape) -> Finding:
    """A clone shows the same as a machine that booted."""
    what = f"clone, {shape}"
    sides = []
    for clone in (True, False):
        with lab.machine(replace(shape, clone=clone)) as machine:
            sides.append([*machine.seen("fork", f"--level={machine.levels[-1].label}"), *machine.seen(*_ANON)])
            early = machine.early
    return _compared(what, "a clone", "a boot", sides, early)


def check_shapes(lab: Lab) -> Finding:
    """The entries of a BAR are the same in every kind of machine."""
    seen: dict[Shape, list[Observation]] = {}
    early = NO_BITS
    for shape in SHAPES:
        with lab.machine(shape) as machine:
            seen[shape] = machine.seen("fork", f"--level={machine.levels[-1].label}")
            early = machine.early
    first, *others = SHAPES
    for shape in others:
        finding = _compared("machines", str(first), str(shape), [seen[first], seen[shape]], early)
        if finding.state is State.FAILED:
            return finding
    return Finding("machines", State.OK, f"the same entries with {'; '.join(map(str, SHAPES))}")


def check_kvm(lab: Lab) -> Finding:
    """KVM shows the same as TCG."""
    what = "KVM beside TCG"
    if lab.kvm:
        return Finding(what, State.SKIPPED, lab.kvm)
    sides = []
    for accel in (Accel.KVM, Accel.TCG):
        with lab.machine(Shape(accel=accel)) as machine:
            programs = [("fork", f"--level={level.label}") for level in machine.levels]
            sides.append([one for program in (*programs, _ANON) for one in machine.seen(*program)])
    return _compared(what, "KVM", "TCG", sides, Bits.A)


def check_bar(lab: Lab) -> Finding:
    """The CPU sets the accessed and dirty bits in entries of the BAR, every time."""
    what = f"accessed and dirty bits on the BAR, {BAR_ROUNDS} times"
    with lab.machine(Shape()) as machine:
        device = machine.device
        rounds = [machine.bar_misses() for _ in range(BAR_ROUNDS)]
    if any(one is None for one in rounds):
        said = f"not known in {sum(one is None for one in rounds)} of {BAR_ROUNDS} rounds"
        return Finding(
            what, State.FAILED, said, "see what `hugepfn run fork` says about this kernel, or use another one"
        )
    missed = [one for one in rounds if one]
    if missed:
        names = " and ".join({name: None for one in missed for name in one.names()})
        said = f"an access did not set {names} in {len(missed)} of {BAR_ROUNDS} rounds, with {device.value}"
        return Finding(what, State.FAILED, said, f"use --accel tcg; {_REPORT}")
    if device is not Device.TESTDEV:
        said = f"{device.value} stands in for pci-testdev, and the CPU sets both in entries of its BAR"
        return Finding(what, State.NOTE, said)
    return Finding(what, State.OK, f"a read sets the accessed bit, a write the dirty bit, with {device.value}")


def check_nvme(lab: Lab) -> Finding:
    """A device with reset and power states works, too. Its machine boots, because QEMU cannot save it."""
    with lab.machine(Shape(device=Device.NVME)) as machine:
        top = machine.levels[-1].label
        for case in ("reset", "sleep"):
            machine.seen("device", f"--case={case}", f"--top={top}")
    return Finding("nvme", State.OK, "reset and D3hot zap the leaves, and an access faults them in again")


_ANON = ("calibrate", "--memory=anon")
_REPORT = "paste this page into a bug report"


def _words(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def _compared(what: str, one: str, other: str, sides: Sequence[list[Observation]], early: Bits) -> Finding:
    first, second = (comparable(seen) for seen in sides)
    if first == second:
        return Finding(what, State.OK, f"{one} and {other} show the same {len(first)} entries")
    if early & Bits.A and comparable([seen.aged() for seen in sides[0]]) == comparable([s.aged() for s in sides[1]]):
        return Finding(what, State.NOTE, f"{one} and {other} differ only in A, which a CPU may set by itself")
    if len(first) != len(second):
        return Finding(what, State.FAILED, f"{one} shows {len(first)} entries, {other} {len(second)}", _REPORT)
    pairs = zip(sides[0], sides[1], first, second, strict=True)
    differ = next(f"{a}; {b}" for a, b, x, y in pairs if x != y)
    return Finding(what, State.FAILED, f"{one} and {other} differ: {differ}", _REPORT)


# --- all of them -------------------------------------------------------------------------------------


def checks(lab: Lab) -> list[tuple[str, Callable[[], Finding]]]:
    """Return every check that needs machines, with its subject. All others rely on the first one."""
    clones = [(f"clone, {shape}", lambda shape=shape: check_clone(lab, shape)) for shape in SHAPES]
    return [
        ("calibration", lambda: check_calibration(lab)),
        ("accessed and dirty bits on the BAR", lambda: check_bar(lab)),
        ("fork", lambda: check_fork(lab)),
        *clones,
        ("machines", lambda: check_shapes(lab)),
        ("KVM beside TCG", lambda: check_kvm(lab)),
        ("nvme", lambda: check_nvme(lab)),
    ]


def findings(
    host: Iterator[Finding], machines: Sequence[tuple[str, Callable[[], Finding]]], clock: Callable[[], float]
) -> Iterator[Finding]:
    """Yield each finding as soon as it is made. A check that hangs fails; when the time is over, no check follows."""
    began = clock()
    yield from host
    for what, look in machines:
        if (took_s := clock() - began) > LIMIT_S:
            advice = "run it again on a host that is less busy"
            yield Finding(what, State.FAILED, f"not checked, because the earlier checks took {took_s:.0f} s", advice)
            continue
        try:
            yield look()
        except PremiseNotMet as unmet:
            yield Finding(what, State.SKIPPED, str(unmet).partition("\n")[0])
        except HugepfnError as error:
            yield Finding(what, State.FAILED, str(error).partition("\n")[0], _REPORT)


def lines_of(finding: Finding) -> str:
    """Return the lines of a finding on the page."""
    line = f"{finding.state.value:<5} {finding.what}: {finding.found}"
    return line + (f"\n      to do: {finding.advice}" if finding.advice else "")


def verdict(found: Sequence[Finding]) -> tuple[str, ExitCode]:
    """Return the last line of the page, and the exit status."""
    counts = [(state, sum(one.state is state for one in found)) for state in State]
    words = ", ".join(f"{count} {state.value}" for state, count in counts if count)
    if any(one.state is State.FAILED for one in found):
        return f"hugepfn cannot be trusted on this host: {words}", ExitCode.MACHINERY
    return f"hugepfn can be trusted on this host: {words}", ExitCode.OK


def run_selfcheck(image: KernelImage, config: MachineConfig, show: Callable[[str], None], say: Say) -> ExitCode:
    """Run all checks, and pass the page to ``show`` line by line.

    :raises KeyboardInterrupt: the user ended it; no machine is left.
    """
    show(f"hugepfn selfcheck with {image.spec}, Linux {image.release}\n")
    found = []
    for finding in findings(host_findings(find_qemu(config.qemu)), checks(RealLab(image, config, say)), time.monotonic):
        found.append(finding)
        show(lines_of(finding))
    words, status = verdict(found)
    show(f"\n{words}")
    return status


# --- machines of this host ---------------------------------------------------------------------------


def seen(vm: VM, program: str, *args: str) -> list[Observation]:
    """Run a guest program to its end, and return what was seen at its checkpoints.

    :raises HugepfnError: it did not pass, or an invariant does not hold.
    """
    with vm.run(program, *args, timeout_s=_PROGRAM_TIMEOUT_S) as guest:
        guest.finish()
    return [one for at in guest.snapshots for one in at.observations()]


class RealSpecimen:
    """A specimen that is a VM."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self.levels = tuple(level for level in LEAF_LEVELS if not vm.caps.why_not(level))
        self.device = vm.spec.device
        self.early = vm.caps.early

    def seen(self, program: str, *args: str) -> list[Observation]:
        """See :class:`Specimen`."""
        return seen(self._vm, program, *args)

    def bar_misses(self) -> Bits | None:
        """See :class:`Specimen`."""
        return probe_bar(self._vm)


class RealLab:
    """The lab of this host."""

    def __init__(self, image: KernelImage, config: MachineConfig, say: Say) -> None:
        self._image, self._config, self._say = image, config, say
        self._binary = find_qemu(config.qemu)

    @property
    def kvm(self) -> str:
        """Return why KVM does not run guests; "" if it does."""
        return "--accel tcg was given" if self._config.accel == "tcg" else kvm_proof(self._binary, "max").reason

    @contextmanager
    def machine(self, shape: Shape) -> Iterator[RealSpecimen]:
        """See :class:`Lab`."""
        accel = self._config.accel if shape.accel is None else shape.accel.value
        device = shape.device.value
        config = replace(
            self._config, accel=accel, smp=shape.smp, append=shape.append, device=device, clone=shape.clone
        )
        with VM(self._image, config=config, say=self._say) as vm:
            yield RealSpecimen(vm)
