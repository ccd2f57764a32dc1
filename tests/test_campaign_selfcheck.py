"""Tests for selfcheck: each check fails when it should and says what to do, and the exit status follows."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from harness.cli import cli
from harness.errors import ExitCode, KernelDied, MachineryError, PremiseNotMet
from harness.pagetable import LEAF_LEVELS, NO_BITS, Bits, Level, Observation, comparable
from harness.qemu.accel import Proof
from harness.qemu.binary import find_qemu
from harness.qemu.spec import Accel, Device
from harness.selfcheck import checks as selfcheck
from harness.selfcheck import host as selfcheck_host
from harness.selfcheck.checks import BAR_ROUNDS, LIMIT_S, SHAPES, Shape, checks, findings, lines_of, verdict
from harness.selfcheck.host import Finding, Space, State, kind_of_mount

See = Callable[[Shape, str, tuple[str, ...]], list[Observation]]


def entry(level: str = "pud", bits: str = "P W U A D", pfn: str = "bar+0x0", raw: int = 0xE7) -> Observation:
    return Observation("forked", "child", "bar", 0, level, raw, tuple(bits.split()), pfn, None)


def sound(_shape: Shape, program: str, args: tuple[str, ...]) -> list[Observation]:
    """The observations of a host that can be trusted."""
    if program == "fork":
        return [entry(level=args[0].removeprefix("--level="))]
    return [entry("pte", pfn="ram+0x1000")]


@dataclass
class Machine:
    shape: Shape
    lab: FakeLab

    @property
    def levels(self) -> tuple[Level, ...]:
        return self.lab.levels

    @property
    def device(self) -> Device:
        return self.lab.device or self.shape.device

    @property
    def early(self) -> Bits:
        return self.lab.early

    def seen(self, program: str, *args: str) -> list[Observation]:
        return self.lab.see(self.shape, program, args)

    def bar_misses(self) -> Bits | None:
        return self.lab.misses.pop(0) if self.lab.misses else NO_BITS


@dataclass
class FakeLab:
    """A simulated host on which every check passes, except for what a test changes."""

    kvm: str = ""
    see: See = sound
    levels: tuple[Level, ...] = LEAF_LEVELS
    device: Device | None = None
    early: Bits = NO_BITS
    misses: list[Bits | None] = field(default_factory=list)
    made: list[Shape] = field(default_factory=list)
    open: int = 0

    @contextmanager
    def machine(self, shape: Shape) -> Iterator[Machine]:
        self.made.append(shape)
        self.open += 1
        try:
            yield Machine(shape, self)
        finally:
            self.open -= 1


def look(lab: FakeLab, clock: Callable[[], float] = lambda: 0.0) -> list[Finding]:
    return [*findings(iter(()), checks(lab), clock)]


def only_failure(lab: FakeLab) -> Finding:
    found = look(lab)
    (failed,) = (one for one in found if one.state is State.FAILED)
    assert failed.advice, "a failed check says what to do"
    assert verdict(found)[1] is ExitCode.MACHINERY
    assert lab.open == 0, "a machine is still running"
    return failed


def test_a_sound_host() -> None:
    lab = FakeLab()
    found = look(lab)
    assert {one.state for one in found} == {State.OK}
    assert verdict(found) == ("hugepfn can be trusted on this host: 10 ok", ExitCode.OK)
    assert {shape.smp for shape in lab.made} == {1, 4}
    assert {word for shape in lab.made for word in shape.append} == {"pti=on", "no5lvl"}
    for shape in SHAPES:
        assert {shape, replace(shape, clone=False)} <= {*lab.made}, "each machine is both cloned and booted"
    assert {shape.accel for shape in lab.made} == {None, Accel.KVM, Accel.TCG}
    assert Device.NVME in {shape.device for shape in lab.made}


def raising(error: Exception, where: Callable[[Shape, str], bool]) -> See:
    def see(shape: Shape, program: str, args: tuple[str, ...]) -> list[Observation]:
        if where(shape, program):
            raise error
        return sound(shape, program, args)

    return see


def other(seen: Observation, where: Callable[[Shape, str], bool]) -> See:
    return lambda shape, program, args: [seen] if where(shape, program) else sound(shape, program, args)


def test_disagreeing_witnesses_fail() -> None:
    error = MachineryError("the walk and pagemap disagree, so the walk proves nothing: page 3")
    lab = FakeLab(see=raising(error, lambda shape, program: program == "calibrate" and shape == Shape()))
    failed = [one for one in look(lab) if one.state is State.FAILED]
    assert failed[0].what == "calibration"
    assert failed[0].found == str(error)


def test_a_missing_level_fails() -> None:
    small = entry("pte")
    lab = FakeLab(see=lambda shape, program, args: [small] if "--level=pmd" in args else sound(shape, program, args))
    failed = [one for one in look(lab) if one.what == "fork"]
    assert [(one.state, one.found) for one in failed] == [(State.FAILED, "pmd: the walk found pte")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_clone_that_differs_from_a_boot_fails(shape: Shape) -> None:
    booted = replace(shape, clone=False)
    failed = only_failure(FakeLab(see=other(entry(bits="P U A", raw=0x25), lambda where, _program: where == booted)))
    assert failed.what == f"clone, {shape}"
    assert "a clone and a boot differ" in failed.found


def test_a_machine_that_differs_from_the_others_fails() -> None:
    lab = FakeLab(see=other(entry(bits="P U A", raw=0x25), lambda shape, program: shape.smp == 4 and program == "fork"))
    failed = only_failure(lab)
    assert failed.what == "machines"
    assert "1 vCPU and 4 vCPUs differ" in failed.found


def test_kvm_that_differs_from_tcg_fails() -> None:
    lab = FakeLab(see=other(entry(bits="P W U A", raw=0xA7), lambda shape, _program: shape.accel is Accel.KVM))
    assert only_failure(lab).what == "KVM beside TCG"


def test_an_accessed_bit_set_early_by_kvm_is_reported_but_no_failure() -> None:
    def see(shape: Shape, program: str, args: tuple[str, ...]) -> list[Observation]:
        seen = sound(shape, program, args)
        return [one.aged() for one in seen] if shape.accel is Accel.TCG else seen

    early = FakeLab(see=see)
    (finding,) = (one for one in look(early) if one.what == "KVM beside TCG")
    assert finding.state is State.NOTE
    assert "differ only in A" in finding.found


def test_another_number_of_entries_fails() -> None:
    lab = FakeLab(see=lambda shape, program, args: sound(shape, program, args) * (2 if shape.clone else 1))
    failed = [one for one in look(lab) if one.state is State.FAILED]
    assert [one.what for one in failed] == [f"clone, {shape}" for shape in SHAPES]
    assert failed[0].found == "a clone shows 4 entries, a boot 2"


def test_without_kvm_the_reason_is_shown() -> None:
    found = look(FakeLab(kvm="there is no /dev/kvm"))
    (skipped,) = (one for one in found if one.state is State.SKIPPED)
    assert (skipped.what, skipped.found) == ("KVM beside TCG", "there is no /dev/kvm")
    assert verdict(found)[1] is ExitCode.OK


@pytest.mark.parametrize(
    ("misses", "said"),
    [
        ([NO_BITS] * 7 + [Bits.D], "an access did not set D in 1 of 20 rounds, with pci-testdev"),
        ([Bits.A, Bits.D], "an access did not set A and D in 2 of 20 rounds, with pci-testdev"),
        ([None], "not known in 1 of 20 rounds"),
    ],
)
def test_a_cpu_that_sometimes_leaves_bits_clear(misses: list[Bits | None], said: str) -> None:
    assert BAR_ROUNDS == 20
    assert only_failure(FakeLab(misses=misses)).found == said


def test_notes_about_limitations() -> None:
    found = {one.what.partition(",")[0]: one for one in look(FakeLab(device=Device.SHMEM, levels=(Level.PTE,)))}
    assert found["accessed and dirty bits on the BAR"].state is State.NOTE
    assert "ivshmem-plain stands in" in found["accessed and dirty bits on the BAR"].found
    assert found["fork"].state is State.NOTE
    assert found["fork"].advice == "try a newer kernel: --kernel"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (KernelDied("the kernel died: Oops\nand more"), State.FAILED),
        (MachineryError("QEMU ended with status 1: no such device\nand more"), State.FAILED),
        (PremiseNotMet("no device bound to vfio-pci\nand more"), State.SKIPPED),
    ],
)
def test_an_error_about_a_device_is_one_line(error: Exception, state: State) -> None:
    lab = FakeLab(see=raising(error, lambda shape, _program: shape.device is Device.NVME))
    (finding,) = (one for one in look(lab) if one.what == "nvme")
    assert (finding.state, finding.found) == (state, str(error).splitlines()[0]), "each finding is one line"
    assert lab.open == 0


def test_the_total_time_is_limited() -> None:
    times = iter([0.0, 1.0, 2.0, *[LIMIT_S + 1] * 20])
    found = look(FakeLab(), lambda: next(times))
    assert [one.state for one in found[:2]] == [State.OK, State.OK]
    assert {one.state for one in found[2:]} == {State.FAILED}
    assert found[2].found == "not checked, because the earlier checks took 601 s"


def test_ctrl_c_ends_it() -> None:
    lab = FakeLab()

    def see(shape: Shape, program: str, args: tuple[str, ...]) -> list[Observation]:
        if shape.smp == 4:
            raise KeyboardInterrupt
        return sound(shape, program, args)

    lab.see = see
    with pytest.raises(KeyboardInterrupt):
        look(lab)
    assert lab.open == 0


def test_only_the_frames_of_ordinary_memory_may_differ() -> None:
    ram = [entry(pfn=f"ram+{paddr:#x}") for paddr in (0x1000, 0x9000)]
    assert comparable(ram[:1]) == comparable(ram[1:])
    assert comparable([entry(pfn="bar+0x0")]) != comparable([entry(pfn="bar+0x1000")])
    assert comparable([entry(bits="P W")]) != comparable([entry(bits="P")])


# --- the host ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "capable", "state"),
    [
        (None, False, State.OK),
        ("0", False, State.OK),
        ("1", False, State.OK),
        ("2", True, State.OK),
        ("2", False, State.FAILED),
        ("3", True, State.FAILED),
    ],
)
def test_ptrace_scope(scope: str | None, capable: bool, state: State) -> None:
    finding = selfcheck_host.of_ptrace(scope, has_capability=capable)
    assert finding.state is state
    assert ("--no-clone" in finding.advice) is (state is State.FAILED)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (Space("ext4", 4096), State.OK),
        (Space("btrfs", 4096), State.OK),
        (Space("overlay", 4096), State.OK),
        (Space("nfs4", 4096), State.NOTE),
        (Space("tmpfs", 64), State.FAILED),
    ],
)
def test_file_systems_and_room(seen: Space, state: State) -> None:
    finding = selfcheck_host.of_space("file system of guest RAM", seen, 1024, "HUGEPFN_RAM_DIR or --ram-dir")
    assert finding.state is state
    assert ("HUGEPFN_RAM_DIR" in finding.advice) is (state is not State.OK)


@pytest.mark.parametrize(("roomy", "state"), [(True, State.NOTE), (False, State.FAILED)])
def test_ram_outside_dev_shm_is_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, roomy: bool, state: State
) -> None:
    """This is so in a container: podman and docker give /dev/shm 64 MiB."""
    monkeypatch.delenv("HUGEPFN_RAM_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def free_mib(folder: object) -> int:
        return 4096 if roomy and Path(str(folder)).is_relative_to(tmp_path) else 64

    monkeypatch.setattr("os.statvfs", lambda folder: SimpleNamespace(f_bavail=free_mib(folder), f_frsize=1 << 20))
    found = selfcheck_host.of_ram()
    assert found.state is state
    if roomy:
        expected = f"guest RAM goes to {tmp_path}: no space for guest RAM: /dev/shm has 64 MiB free, expected 1024 MiB"
        assert found.found.endswith(f", 4096 MiB free; {expected}")
    else:
        assert "64 MiB free; expected at least 1024 MiB" in found.found


MOUNTS = """22 1 0:20 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/l
23 22 0:21 / /dev/shm rw - tmpfs tmpfs rw,size=64m
24 22 0:22 / /home/some\\040one rw - btrfs /dev/vdb rw
25 23 0:23 / /dev/shm rw - ramfs ramfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "overlay"),
        ("/var/cache", "overlay"),
        ("/dev/shmem", "overlay"),
        ("/dev/shm/x", "ramfs"),
        ("/home/some one/.cache", "btrfs"),
    ],
)
def test_the_kind_of_a_file_system(path: str, kind: str) -> None:
    assert kind_of_mount(Path(path), MOUNTS) == kind


def test_limits() -> None:
    enough = {"RLIMIT_NOFILE": 1024, "RLIMIT_FSIZE": resource.RLIM_INFINITY, "RLIMIT_MEMLOCK": 0}
    assert selfcheck_host.of_limits(enough).state is State.OK
    for name, value in (("RLIMIT_NOFILE", 64), ("RLIMIT_FSIZE", 1 << 20), ("RLIMIT_AS", 1 << 30)):
        finding = selfcheck_host.of_limits({**enough, name: value})
        assert finding.state is State.FAILED
        assert name.removeprefix("RLIMIT_") in finding.advice


LISTED = "Accelerators supported in QEMU binary:\ntcg\nkvm\n"


def test_accelerators() -> None:
    works, broken = Proof(True, ""), Proof(False, "failed to set MSR 0x10a")
    assert selfcheck_host.of_accelerators(LISTED, works).state is State.OK
    note = selfcheck_host.of_accelerators(LISTED, broken)
    assert (note.state, "failed to set MSR 0x10a" in note.found) == (State.NOTE, True)
    assert selfcheck_host.of_accelerators(LISTED.replace("tcg\n", ""), broken).state is State.FAILED


# --- the command -------------------------------------------------------------------------------------


def test_a_line_says_what_was_found_and_what_to_do() -> None:
    finding = Finding("limits", State.FAILED, "NOFILE 64", "raise it")
    assert lines_of(finding) == "FAIL  limits: NOFILE 64\n      to do: raise it"
    assert lines_of(replace(finding, state=State.OK, advice="")) == "ok    limits: NOFILE 64"


@pytest.mark.parametrize(("state", "status"), [(State.OK, 0), (State.NOTE, 0), (State.FAILED, 3)])
def test_the_command_prints_the_page_and_its_status(monkeypatch: pytest.MonkeyPatch, state: State, status: int) -> None:
    class Kernel:
        spec, release = "host", "6.12.118-cloud-amd64"

    asked: list[str] = []

    def parse(spec: str, _modules: None) -> type[Kernel]:
        asked.append(spec)
        return Kernel

    monkeypatch.setattr("harness.kernel.Kernel.parse", parse)
    monkeypatch.setattr(Kernel, "resolve", lambda _say: Kernel, raising=False)
    monkeypatch.setattr(selfcheck, "host_findings", lambda _qemu: iter([Finding("limits", State.OK, "NOFILE 1024")]))
    monkeypatch.setattr(selfcheck, "checks", lambda _lab: [("fork", lambda: Finding("fork", state, "seen"))])
    monkeypatch.setattr("harness.kernel.default_kernel", lambda: Kernel)  # as on a host without a Debian mirror
    done = CliRunner().invoke(cli, ["selfcheck"])
    assert done.exit_code == status, done.output
    assert asked == ["host"]
    assert done.output.splitlines()[0] == "hugepfn selfcheck with host, Linux 6.12.118-cloud-amd64"
    assert f"{state.value:<5} fork: seen" in done.output
    assert done.output.splitlines()[-1].startswith(
        "hugepfn can" + ("not" if status else " ") + ("" if status else "be")
    )
    assert "\x1b" not in done.output


def test_the_host_is_checked_before_any_machine() -> None:
    """Runs on this host: every line has text, whatever the finding is."""
    found = [*selfcheck_host.host_findings(find_qemu())]
    assert [one.what for one in found] == [
        "versions",
        "accelerators",
        "file system of the cache",
        "file system of guest RAM",
        "ptrace scope",
        "limits",
    ]
    assert all(one.found for one in found)
    assert not any(str(Path.home()) in one.found for one in found), "no finding shows a path of this host"
