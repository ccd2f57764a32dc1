"""A kernel that runs: boot it, run guest programs in it, look at it, end it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pexpect.fdpexpect import fdspawn

from harness import cache
from harness.errors import BootError, HugepfnError, MachineryError, UsageError
from harness.guest.compiler import compile_program, find_source
from harness.guest.initramfs import build_initramfs
from harness.kernel import Kernel, KernelImage, load_order, unpacked
from harness.machine import kept
from harness.machine.accel import choose_accel, remember_lie
from harness.machine.agent import Agent
from harness.machine.loop import LoopThread
from harness.machine.machine import Machine, Origin, Timing, boot, clone, revive
from harness.machine.probe import probe
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.ram import GuestMemory, SharedRam
from harness.machine.run import GuestRun
from harness.machine.spec import Accel, Channel, MachineSpec
from harness.machine.template import KIND, Template, discard, load, prune, save_state, template_key, write_meta
from harness.machine.witness import Witness
from harness.pagetable import Layout, Region
from harness.verdict import Taint, parse_taint
from harness.verdict.capabilities import Capabilities

T = TypeVar("T")

#: QEMU 7.2's TCG now and then leaves a pointer in EFLAGS when an interrupt follows CMPXCHG16B, and the guest dies of a
#: double fault in kmalloc (docs/decisions.md). Without the instruction the kernel's allocator takes its other path.
_TCG_CPU = "max,cx16=off"
#: A kernel that KVM really runs has printed something long before this.
_KVM_FIRST_LINE_S = 20.0


class VM:
    """One booted kernel. A context: what leaves the block leaves nothing behind.

    :param kernel: what to boot; a spec such as ``"debian:6.12"`` will do.
    :param accel: ``auto`` (KVM if proven, else TCG), ``kvm`` or ``tcg``.
    :param smp: number of vCPUs, 1 to 4.
    :param append: words for the kernel command line.
    :param search: folders in which guest programs are looked for before the scenarios.
    :param boot_timeout_s: how long the kernel may take to reach the agent.
    :param clone: come back from a template (0.1 s) that is booted once and kept, instead of booting each time.
    :param pvh: start a bzImage's vmlinux through PVH where it can: a fifth faster under TCG, but the code that turns on
        KASLR and five-level tables is in the part that is skipped.
    """

    def __init__(
        self,
        kernel: Kernel | KernelImage | str = "debian",
        *,
        accel: str = "auto",
        smp: int = 1,
        memory_mib: int = 1024,
        cpu: str = "max",
        append: Sequence[str] = (),
        search: Sequence[Path] = (),
        ram_dir: Path | None = None,
        boot_timeout_s: float | None = None,
        say: Callable[[str], None] = lambda _line: None,
        clone: bool = True,
        pvh: bool = False,
    ) -> None:
        self._asked = kernel
        self._accel = accel
        self._smp, self._memory_mib, self._cpu, self._append = smp, memory_mib, cpu, tuple(append)
        self._search = tuple(search)
        self._ram_dir = ram_dir
        self._boot_timeout_s = boot_timeout_s
        self._say = say
        self._clone = clone
        self._pvh = pvh
        self._loop: LoopThread | None = None
        self._run: GuestRun | None = None
        self._early: list[bytes] | None = None
        self._pushed: dict[str, Path] = {}
        self._capabilities: Capabilities | None = None
        self.runs: list[GuestRun] = []
        self.on_failure: Callable[[VM], None] | None = None  # called while a failed run's processes are still there
        self._broken = False
        self._qemu: Qemu | None = None
        self._machine: Machine | None = None
        self.kernel: KernelImage
        self.spec: MachineSpec
        self.layout = Layout.MODERN

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Comes up: as a clone of a template, which is made first if need be, or by a boot of its own.

        :raises BootError: the kernel did not reach the agent.
        :raises MachineryError: QEMU, the kernel's files or this host are not what is needed.
        """
        if self._accel not in ("auto", "kvm", "tcg"):
            raise UsageError(f"accel {self._accel!r}; valid values: auto, kvm, tcg")
        binary = find_qemu()
        accel = choose_accel(self._accel, binary, self._cpu, self._say)
        self.kernel = _resolve(self._asked, self._say)
        try:
            self._come_up(accel)
        except BootError as error:
            if accel is not Accel.KVM or self._accel != "auto" or error.console_tail:
                raise
            reason = f"guest code ran, but a kernel printed nothing: {str(error).splitlines()[0]}"
            remember_lie(binary, self._cpu, reason)
            self._say(f"TCG, since KVM does not run kernels here: {reason}")
            self._come_up(Accel.TCG)
        return self

    def _come_up(self, accel: Accel) -> None:
        vmlinux = unpacked(self.kernel) if self._pvh else None
        self.spec = MachineSpec(
            kernel=vmlinux or self.kernel.image,
            initramfs=build_initramfs(self.kernel),
            accel=accel,
            channel=_channel(self.kernel),
            smp=self._smp,
            memory_mib=self._memory_mib,
            cpu=_TCG_CPU if self._cpu == "max" and accel is Accel.TCG else self._cpu,
            append=self._append,
        )
        template = self._template() if self._clone else None
        if template is not None:
            self._use(clone(self.spec, template, self._receive_events, self._started))
            self._capabilities = template.capabilities
            self.layout = template.capabilities.layout
        else:
            first_line_s = _KVM_FIRST_LINE_S if accel is Accel.KVM and self._accel == "auto" else None
            timing = Timing(self._boot_timeout_s, first_line_s)
            self._use(boot(self.spec, self.kernel, self._ram_dir, self._receive_events, self._started, timing))

    def _use(self, coming_up: Coroutine[Any, Any, Machine]) -> None:
        self._loop = LoopThread("hugepfn-machine")
        try:
            self._machine = self.on_loop(coming_up)
        except BaseException:
            self.close()
            raise

    def _started(self, qemu: Qemu) -> None:
        self._qemu = qemu

    def _template(self) -> Template:
        """The template of this machine; one that is not what was saved is made again."""
        key = template_key(self.spec, self.kernel.key, find_qemu())

        def build(folder: Path) -> None:
            self._say(f"booting {self.kernel.release} once, to clone it from now on")
            # The accelerator is chosen: a KVM that lies shows as a BootError, and start() knows what to do.
            accel = "auto" if self._accel == "auto" and self.spec.accel is Accel.KVM else self.spec.accel.value
            with self._sibling(accel) as original:
                if original.spec != self.spec:
                    raise MachineryError("KVM gave up while a template was made; run again")
                original.save(folder)

        for last in (False, True):
            folder = cache.obtain(KIND, key, build, self._say)
            try:
                return load(folder)
            except MachineryError as error:
                if last:
                    raise
                self._say(f"{error}; making it again")
                discard(folder)
        raise AssertionError

    def _sibling(self, accel: str) -> VM:
        return VM(
            self.kernel,
            accel=accel,
            smp=self._smp,
            memory_mib=self._memory_mib,
            cpu=self._cpu,
            append=self._append,
            ram_dir=self._ram_dir,
            boot_timeout_s=self._boot_timeout_s,
            say=self._say,
            clone=False,
            pvh=self._pvh,
        )

    def save(self, folder: Path) -> None:
        """Makes a template of this machine, in an empty folder. The machine stands still afterwards."""
        ram = self.qemu.ram
        if not isinstance(ram, SharedRam):
            raise UsageError("only a machine that booted can be made a template")
        capabilities = self.caps
        self.on_loop(self.qemu.stop())
        self.on_loop(save_state(self.qemu, folder / "state", with_ram=False))
        ram.copy_to(folder / "ram")
        write_meta(folder, self.ready, self.bar, capabilities, self.kernel_log)
        prune()

    def keep(self, name: str, why: str) -> None:
        """Saves this machine whole, under a name for ``hugepfn shell NAME``. It stands still afterwards."""
        if (old := cache.find(kept.KIND, name)) is not None:
            discard(old)
        facts = {"kernel": self.kernel.spec, "why": why, "ready": dict(self.ready), "bar": asdict(self.bar)}
        cache.obtain(kept.KIND, name, lambda folder: self.on_loop(kept.keep(self.qemu, folder, facts)))
        self._broken = True

    @classmethod
    def revive(cls, name: str, ram_dir: Path | None = None) -> VM:
        """A machine that :meth:`keep` saved, running again. Close it."""
        saved = kept.find(name)
        vm = cls(saved.kernel, ram_dir=ram_dir)
        vm.spec = saved.spec
        vm._use(revive(saved, ram_dir, vm._receive_events, vm._started))
        return vm

    def close(self) -> None:
        """Ends QEMU and gives everything back. Safe to call at any time, and twice."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            if self._qemu is not None:
                loop.run(self._qemu.quit())
                self._qemu.ram.close()
        finally:
            loop.close()

    @property
    def _running(self) -> Machine:
        if self._machine is None:
            raise MachineryError("this VM is not running")
        return self._machine

    @property
    def running(self) -> bool:
        """Whether it came up."""
        return self._machine is not None

    @property
    def qemu(self) -> Qemu:
        """The QEMU process."""
        return self._running.qemu

    @property
    def agent(self) -> Agent:
        """PID 1 of the guest."""
        return self._running.agent

    @property
    def bar(self) -> Region:
        """Where the device's memory is, in guest-physical bytes."""
        return self._running.bar

    @property
    def ready(self) -> Mapping[str, str]:
        """What the guest said of itself when it came up."""
        return self._running.ready

    @property
    def origin(self) -> Origin:
        """Whether it booted, or is a clone."""
        return self._running.origin

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the machine's event loop."""
        if self._loop is None:
            work.close()
            raise MachineryError("this VM is not running")
        return self._loop.run(work)

    # --- running programs ------------------------------------------------------------------------

    def run(self, program: str | Path, *args: str, timeout_s: float = 30.0) -> GuestRun:
        """Compiles a guest program if needed, sends it over if needed, and starts it.

        :param program: the name of a scenario's C file, or the path of one's own.
        :param timeout_s: how long each :meth:`GuestRun.until` may take, and the end.
        :raises CompileError: it does not compile.
        """
        if self._run is not None:
            raise UsageError(f"{self._run.program} still runs; leave its `with` block first")
        if self._broken:
            raise MachineryError("the guest did not survive the program before; boot another VM")
        self.caps  # noqa: B018 - the layout comes from there, and has to be known before the first walk
        run = self._start(program, args, timeout_s)
        self.runs.append(run)
        return run

    def _start(self, program: str | Path, args: Sequence[str], timeout_s: float) -> GuestRun:
        path = self.push(program)
        return self.on_loop(self._launch([path, *args], timeout_s))

    def push(self, program: str | Path) -> str:
        """Sends a guest program over, unless this build of it is there; returns its path in the guest."""
        built = compile_program(find_source(str(program), self._search))
        path = f"/tests/{built.name}"
        if self._pushed.get(path) != built.stripped:
            self.on_loop(self.agent.put(path, built.read()))
            self._pushed[path] = built.stripped
        return path

    async def _launch(self, argv: Sequence[str], timeout_s: float) -> GuestRun:
        log_start = self.qemu.log_from = len(self.qemu.log.text)
        witness = Witness(self.qemu, self.bar, self.layout)
        job_started = asyncio.ensure_future(self.agent.run(argv))
        # The program may speak before the agent says that it runs: keep what comes.
        early: list[bytes] = []
        self._early = early
        job = await job_started
        run = GuestRun(self, job, witness, timeout_s, log_start)
        for data in early:
            run.receive(data)
        self._early = None
        self._run = run
        return run

    def _receive_events(self, data: bytes) -> None:
        if self._run is not None:
            self._run.receive(data)
        elif self._early is not None:
            self._early.append(data)

    def forget(self, run: GuestRun) -> None:
        """The run is over."""
        if self._run is run:
            self._run = None

    def abandon(self, run: GuestRun) -> None:
        """The run failed on the way: end its processes, or give the guest up if it no longer answers."""
        self.forget(run)
        if self.on_failure is not None:
            self.on_failure(self)
        if self._broken:
            return
        try:
            self.on_loop(run.end())
        except HugepfnError:
            self._broken = True

    def get(self, path: str) -> bytes:
        """A file of the guest, /proc and /sys included."""
        return self.on_loop(self.agent.get(path))

    # --- looking ---------------------------------------------------------------------------------

    @property
    def caps(self) -> Capabilities:
        """What this kernel can do, probed on first use."""
        if self._capabilities is None:
            self._capabilities = probe(self)
            self.layout = self._capabilities.layout
        return self._capabilities

    @property
    def probed(self) -> bool:
        """Whether :attr:`caps` is known already."""
        return self._capabilities is not None

    @property
    def kernel_log(self) -> str:
        """The whole console so far."""
        return self.qemu.log.text

    @property
    def taint(self) -> Taint:
        """/proc/sys/kernel/tainted now."""
        return parse_taint(self.get("/proc/sys/kernel/tainted").decode())

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM. Walk it only inside :meth:`paused`, or at a checkpoint."""
        return self.qemu.ram.memory

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block during which no vCPU runs."""
        was_stopped = self.qemu.stopped
        if not was_stopped:
            self.on_loop(self.qemu.stop())
        try:
            yield
        finally:
            if not was_stopped:
                self.on_loop(self.qemu.resume())

    def shell(self) -> socket.socket:
        """Starts a shell in the guest; our end of its serial line.

        :raises MachineryError: there is no busybox in the guest (it was not on the host).
        """
        self.on_loop(self.agent.request("shell"))
        own = self.qemu.end("shell").dup()
        own.setblocking(True)
        return own

    def console(self) -> fdspawn:
        """A shell in the guest, as a pexpect spawn, on a serial line of its own; see :meth:`shell`."""
        return fdspawn(self.shell().detach(), encoding="utf-8", timeout=30)


def _resolve(asked: Kernel | KernelImage | str, say: Callable[[str], None]) -> KernelImage:
    if isinstance(asked, KernelImage):
        return asked
    kernel = Kernel.parse(asked) if isinstance(asked, str) else asked
    return kernel.resolve(say)


def _channel(kernel: KernelImage) -> Channel:
    """virtio-serial where the kernel has the driver, else UARTs."""
    if (
        kernel.config is not None
        and kernel.config.is_builtin("VIRTIO_CONSOLE")
        and kernel.config.is_builtin("VIRTIO_PCI")
    ):
        return Channel.VIRTIO
    order = load_order(kernel, ("virtio_console", "virtio_pci"))
    return Channel.SERIAL if order.missing else Channel.VIRTIO
