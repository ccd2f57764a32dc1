"""A running kernel: boot it, run guest programs in it, read its page tables, end it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.config import DEFAULT, MachineConfig
from harness.errors import (
    BootError,
    EmulatorError,
    HugepfnError,
    MachineStopped,
    PremiseNotMet,
    RestoreError,
    UsageError,
)
from harness.events import Note, Say
from harness.host import cache
from harness.introspect.drgn_program import drgn_program
from harness.introspect.gdb import GdbStub, start_stub
from harness.introspect.kvm import KvmRoots
from harness.introspect.processes import Processes, ProcessRoot, ProcessVmas, RangeWalk
from harness.kernel import Kernel, KernelImage
from harness.machine import kept
from harness.machine.bring_up import Timing, boot, clone, revive
from harness.machine.preparation import kernel_of, machine_spec
from harness.machine.programs import Programs
from harness.machine.template import Template, discard, obtain, save_template, template_key
from harness.machine.watched import WatchedMachine
from harness.observe.bar_bits import EARLY, stand_in, what_is_missed
from harness.observe.owner import EndingRun
from harness.observe.probe import probe
from harness.observe.run import GuestRun
from harness.pagetable import Layout, Walk
from harness.qemu.accel import choose_accel, remember_lie, tell_why_tcg
from harness.qemu.binary import QemuBinary, find_qemu
from harness.qemu.ram import SharedRam
from harness.qemu.spec import Accel, MachineSpec
from harness.verdict.capabilities import Capabilities

#: A kernel that KVM runs has printed something long before this.
_KVM_FIRST_LINE_S = 20.0
#: With four vCPUs, QEMU's TCG breaks about one boot in forty. Three failures in a row have another cause.
_BOOTS_MAX = 3


class VM(WatchedMachine):
    """One booted kernel. Use it in a ``with`` statement: the machine ends with the block.

    :param kernel: the kernel to boot, or its spec such as ``"debian:6.12"``; by default the one of ``config``.
    :param config: the machine; by default the default machine. Neither the environment nor a pyproject.toml is read.
    :param search: folders in which guest programs are searched before those of the scenarios.
    :param say: called with each event of progress, see docs/events.md.
    :param fields: fields of :class:`MachineConfig` that differ from ``config``: ``smp=4, append=["pti=on"]``.
    """

    def __init__(
        self,
        kernel: Kernel | KernelImage | str | None = None,
        config: MachineConfig = DEFAULT,
        *,
        search: Sequence[Path] = (),
        say: Say = lambda _event: None,
        **fields: Any,
    ) -> None:
        super().__init__()
        self._asked = kernel
        self.config = replace(config, **fields)
        self.asked_device = self.config.device  # another may stand in for it, see harness/observe/bar_bits.py
        self._search = tuple(search)
        self._say = say
        self.programs = Programs(self, search)
        self._capabilities: Capabilities | None = None
        self.processes = Processes(self)
        self.kvm_roots = KvmRoots(self.processes.facts)
        self.on_failure: Callable[[VM], None] | None = None  # called while the processes of a failed run still wait
        self.kernel: KernelImage
        self.spec: MachineSpec
        self.layout = Layout.MODERN

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Bring the machine up: as a clone of a template, which is made first if there is none, or by a boot.

        :raises BootError: the kernel did not reach the agent, hugepfn's PID 1.
        :raises UsageError: there is no such kernel.
        :raises MachineryError: QEMU, the files of the kernel, or this host failed.
        """
        binary = find_qemu(self.config.qemu)
        accel, why_tcg = choose_accel(self.config.accel, binary, self.config.cpu)
        self.kernel = self._resolve()
        try:
            self._come_up(accel)
        except (BootError, MachineStopped) as error:
            kvm_is_a_must = self.config.accel != "auto" or self.config.cpu.startswith("host")
            printed = isinstance(error, BootError) and error.console_tail
            if accel is not Accel.KVM or kvm_is_a_must or printed:
                raise
            self._fall_back(binary, str(error).splitlines()[0])
        tell_why_tcg(why_tcg, self._say)
        return self

    def _resolve(self) -> KernelImage:
        if isinstance(self._asked, KernelImage):
            return self._asked
        asked = Kernel.parse(self._asked) if isinstance(self._asked, str) else self._asked
        return (asked or kernel_of(self.config)).resolve(self._say)

    def _fall_back(self, binary: QemuBinary, what: str) -> None:
        """Use TCG, because the kernel printed nothing under KVM, or KVM failed to run it.

        If the kernel prints something under TCG, the fault is KVM's, and is remembered.
        """
        reason = f"KVM ran the test guest, but not a kernel: {what}"
        self._say(Note(f"using TCG, because KVM does not run this kernel: {reason}"))
        try:
            self._come_up(Accel.TCG)
        except BootError as error:
            if error.console_tail:
                remember_lie(binary, self.config.cpu, reason)
            raise
        remember_lie(binary, self.config.cpu, reason)

    def _come_up(self, accel: Accel) -> None:
        """Come up with the requested device, or with the one that stands in for it."""
        self.spec = machine_spec(self.config, self.kernel, accel)
        if self.config.clone and not self.spec.why_not_saved:
            self._clone()
            return
        self._boot(self._timing())
        if EARLY[accel]:
            self._boot_again_if_another_stands_in(accel)

    def _boot_again_if_another_stands_in(self, accel: Accel) -> None:
        another = True
        try:
            another = self._stands_in(self.caps)
        finally:
            if another:  # otherwise nothing can be known on this host
                self.close()
                self._capabilities, self.programs = None, Programs(self, self._search)
        if another:
            self._come_up(accel)

    def _stands_in(self, capabilities: Capabilities) -> bool:
        """Return whether another device has to be used, because the CPU misses bits in entries of this one; use it.

        :raises MachineryError: there is no other.
        """
        if missed := capabilities.bar_misses:
            device = stand_in(self.spec.device, missed)
            why = what_is_missed(self.spec.device, missed)
            self._say(Note(f"using {device.value} instead of {self.spec.device.value}: {why}"))
            self.config = replace(self.config, device=device.value)
            self.spec = replace(self.spec, device=device)
        return bool(capabilities.bar_misses)

    def _clone(self) -> None:
        """Restore the template. One that QEMU refuses is built again, once."""
        for last in (False, True):
            template = self._template()
            if self._stands_in(template.capabilities):
                template = self._template()
                self._stands_in(template.capabilities)
            try:
                self._use(clone(self.spec, find_qemu(self.config.qemu), template, self.programs.receive, self._started))
                break
            except RestoreError as error:
                discard(template.folder)
                if last:
                    raise
                self._say(Note(f"{error}; building it again"))
        self._know(template.capabilities)

    def _timing(self) -> Timing:
        may_fall_back = self.spec.accel is Accel.KVM and self.config.accel == "auto"
        return Timing(self.config.boot_timeout_s, _KVM_FIRST_LINE_S if may_fall_back else None)

    def _boot(self, timing: Timing) -> None:
        binary, ram_dir = find_qemu(self.config.qemu), self.config.ram_dir
        for left in reversed(range(_BOOTS_MAX)):
            try:
                self._use(boot(self.spec, binary, self.kernel, ram_dir, self.programs.receive, self._started, timing))
                return
            except EmulatorError as error:
                if not left:
                    raise
                self._say(Note(f"booting again: {error}"))

    def _template(self) -> Template:
        def build(folder: Path) -> None:
            self._say(Note(f"booting {self.kernel.release} once; from now on it will be cloned"))
            with contextlib.closing(VM(self.kernel, self.config, say=self._say, clone=False)) as original:
                original.kernel, original.spec = self.kernel, self.spec
                original._boot(original._timing())  # start() hears of a KVM that does not run it
                original.save(folder)

        return obtain(template_key(self.spec, self.kernel.key, find_qemu(self.config.qemu)), build, self._say)

    def save(self, folder: Path) -> None:
        """Make a template of this machine, in an empty folder. The machine stands still afterwards."""
        if not isinstance(self.qemu.ram, SharedRam):
            raise UsageError("a clone cannot become a template; expected a machine that booted (clone=False)")
        capabilities = self.caps
        self.on_loop(save_template(self.machine, folder, capabilities))

    def keep(self, name: str, why: str) -> None:
        """Save this machine with its RAM, for ``hugepfn shell --kept NAME`` and :meth:`revive`. It then goes on.

        :param why: what it is kept for, which ``hugepfn kept`` shows.
        :raises UsageError: QEMU cannot save a machine of this kind.
        """
        if self.spec.why_not_saved:
            raise UsageError(self.spec.why_not_saved)
        if (old := cache.find(kept.KIND, name)) is not None:
            discard(old)
        facts = {
            "kernel": self.kernel.spec,
            "kernel_key": self.kernel.key,
            "modules": str(self.kernel.modules_dir or ""),
            "why": why,
            "ready": dict(self.ready),
            "bars": [asdict(bar) for bar in self.bars],
            "next_id": self.agent.next_id,
            "capabilities": self._capabilities.to_json() if self._capabilities is not None else None,
        }
        with self.paused():
            cache.obtain(kept.KIND, name, lambda folder: self.on_loop(kept.keep(self.qemu, folder, facts)))

    @classmethod
    def revive(cls, name: str, qemu: str | None = None, ram_dir: Path | None = None) -> VM:
        """Return a machine that :meth:`keep` saved, running again. Close it.

        :param qemu: as in :class:`MachineConfig`, like ``ram_dir``.
        :raises UsageError: there is no kept machine with this name.
        :raises RestoreError: QEMU cannot restore it.
        """
        saved = kept.find(name)
        vm = cls(saved.kernel, qemu=qemu, ram_dir=ram_dir)
        vm.spec = saved.spec
        with contextlib.suppress(HugepfnError):  # the kernel's files are gone; the machine runs without them
            kernel = saved.asked.resolve(offline=True)
            if kernel.key == saved.kernel_key:  # otherwise it was built again, and its symbols do not fit
                vm.kernel = kernel
        vm._use(revive(saved, find_qemu(qemu), ram_dir, vm.programs.receive, vm._started))
        if saved.capabilities is not None:
            vm._know(saved.capabilities)
        return vm

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- running programs ------------------------------------------------------------------------

    def run(self, program: str | Path, *args: str, timeout_s: float = 30.0) -> GuestRun:
        """Compile a guest program, send it to the guest and start it. Nothing is done again that was done before.

        :param program: the name of a C file, of a scenario or in ``search`` (beside the test); or the path of a file.
        :param args: the program's arguments.
        :param timeout_s: seconds that each :meth:`GuestRun.until` may take, and the end of the program.
        :returns: the running program, for a ``with`` statement.
        :raises CompileError: it does not compile; the message has the compiler's first error.
        :raises UsageError: another program is still running.
        """
        self.programs.check_idle()
        self.caps  # noqa: B018 - the probe gives the layout, which the first walk needs
        if self.spec.kvm:
            self.kvm_roots.learn()
        run = self.launch(program, args, timeout_s)
        self.runs.append(run)
        return run

    def launch(self, program: str | Path, args: Sequence[str], timeout_s: float) -> GuestRun:
        """Start a guest program as :meth:`run` does, but neither probe the kernel first nor keep the run."""
        return self.programs.launch(program, args, timeout_s)

    def forget(self, run: EndingRun) -> None:
        """The run is over."""
        self.programs.forget(run)

    def abandon(self, run: EndingRun, error: BaseException) -> None:
        """The run ended with an error: end its processes, or give the guest up if it no longer answers."""
        self.programs.forget(run)
        if self.on_failure is not None and not isinstance(error, PremiseNotMet | UsageError | KeyboardInterrupt):
            self.on_failure(self)
        self.programs.abandon(run, error)

    @property
    def known_kernel(self) -> KernelImage | None:
        """The kernel's files; None for a kept machine whose kernel was removed or built again."""
        return getattr(self, "kernel", None)

    # --- looking ---------------------------------------------------------------------------------

    @property
    def caps(self) -> Capabilities:
        """What this kernel can do, probed on first use."""
        if self._capabilities is None:
            self._know(probe(self))
        assert self._capabilities is not None
        return self._capabilities

    def _know(self, capabilities: Capabilities) -> None:
        self._capabilities = capabilities
        self.layout = capabilities.layout
        if self.running:
            self.qemu.standstill.clock_jumps = self.spec.accel is Accel.KVM and not capabilities.kvm_clock

    @property
    def probed(self) -> bool:
        """Whether :attr:`caps` is known already."""
        return self._capabilities is not None

    def drgn(self) -> Any:
        """Return a drgn.Program on the guest's RAM. Read through it inside :meth:`paused` or at a checkpoint.

        :raises PremiseNotMet: drgn is not installed (the extra ``drgn``), or the kernel has no vmcoreinfo.
        """
        return drgn_program(self, self.processes.facts)

    def gdb(self) -> GdbStub:
        """Stop the guest and wait for gdb on a Unix socket; ``command`` of the result attaches it."""
        return start_stub(self, self.processes)

    def process_root(self, pid: int) -> ProcessRoot:
        """Return where the page tables of any process start (mm->pgd); see :meth:`Processes.root`."""
        return self.processes.root(pid)

    def walk(self, pid: int, vaddr: int) -> Walk:
        """Return the walk from the root of any process to one address; see :meth:`Processes.walk`."""
        return self.processes.walk(pid, vaddr)

    def walk_range(self, pid: int, start: int, end: int) -> RangeWalk:
        """Return all entries in [start, end) of any process; see :meth:`Processes.walk_range`."""
        return self.processes.walk_range(pid, start, end)

    def vmas(self, pid: int) -> ProcessVmas:
        """Return the VMAs of any process, and what its page tables have in each; see :meth:`Processes.vmas`."""
        return self.processes.vmas(pid)
