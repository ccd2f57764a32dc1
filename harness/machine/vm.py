"""A kernel that runs: boot it, run guest programs in it, look at it, end it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pexpect.fdpexpect import fdspawn

from harness.errors import BootError, HugepfnError, KernelError, MachineryError, UsageError
from harness.guest.compiler import compile_program, find_source
from harness.guest.initramfs import build_initramfs
from harness.kernel import Kernel, KernelImage, load_order
from harness.machine.accel import choose_accel, remember_lie
from harness.machine.agent import Agent
from harness.machine.loop import LoopThread
from harness.machine.probe import probe
from harness.machine.qemu import Qemu, find_qemu
from harness.machine.ram import GuestRam
from harness.machine.run import GuestRun
from harness.machine.spec import BAR_SLOT, Accel, Channel, MachineSpec
from harness.machine.witness import Witness, bar_from_pci
from harness.pagetable import Layout, PhysicalMemory, Region
from harness.verdict import Taint, parse_taint
from harness.verdict.capabilities import Capabilities

T = TypeVar("T")

_BAR_REGION = 2
_BOOT_TIMEOUT_S = {Accel.KVM: 60.0, Accel.TCG: 180.0}
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
    ) -> None:
        self._asked = kernel
        self._accel = accel
        self._smp, self._memory_mib, self._cpu, self._append = smp, memory_mib, cpu, tuple(append)
        self._search = tuple(search)
        self._ram_dir = ram_dir
        self._boot_timeout_s = boot_timeout_s
        self._say = say
        self._loop: LoopThread | None = None
        self._run: GuestRun | None = None
        self._early: list[bytes] | None = None
        self._pushed: dict[str, Path] = {}
        self._capabilities: Capabilities | None = None
        self.runs: list[GuestRun] = []
        self._broken = False
        self.kernel: KernelImage
        self.spec: MachineSpec
        self.qemu: Qemu
        self.agent: Agent
        self.bar: Region
        self.ready: Mapping[str, str] = {}
        self.layout = Layout.MODERN

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Boots.

        :raises BootError: the kernel did not reach the agent.
        :raises MachineryError: QEMU, the kernel's files or this host are not what is needed.
        """
        if self._accel not in ("auto", "kvm", "tcg"):
            raise UsageError(f"accel {self._accel!r}; valid values: auto, kvm, tcg")
        binary = find_qemu()
        accel = choose_accel(self._accel, binary, self._cpu, self._say)
        self.kernel = _resolve(self._asked, self._say)
        try:
            self._boot(accel)
        except BootError as error:
            if accel is not Accel.KVM or self._accel != "auto" or error.console_tail:
                raise
            reason = f"guest code ran, but a kernel printed nothing: {str(error).splitlines()[0]}"
            remember_lie(binary, self._cpu, reason)
            self._say(f"TCG, since KVM does not run kernels here: {reason}")
            self._boot(Accel.TCG)
        return self

    def _boot(self, accel: Accel) -> None:
        self.spec = MachineSpec(
            kernel=self.kernel.image,
            initramfs=build_initramfs(self.kernel),
            accel=accel,
            channel=_channel(self.kernel),
            smp=self._smp,
            memory_mib=self._memory_mib,
            cpu=self._cpu,
            append=self._append,
        )
        self._loop = LoopThread("hugepfn-machine")
        try:
            self.on_loop(self._bring_up())
        except BaseException:
            self.close()
            raise

    async def _bring_up(self) -> None:
        ram = GuestRam(self._memory_mib, self._ram_dir)
        self.qemu = Qemu(self.spec, find_qemu(), ram)
        await self.qemu.start()
        self.agent = Agent(self.qemu)
        self.qemu.pump("events", self._receive_events)
        try:
            if self.spec.accel is Accel.KVM and self._accel == "auto":
                await self.qemu.expect(self.qemu.log.first_line(), _KVM_FIRST_LINE_S, "the kernel's first words")
            self.ready = await self.agent.ready(self._boot_timeout_s or _BOOT_TIMEOUT_S[self.spec.accel])
        except KernelError as error:
            raise BootError(
                f"{self.kernel.spec} ({self.kernel.release}) does not boot: {error}\n{self.qemu.log.tail()}",
                argv=self.qemu.argv,
                exit_status=self.qemu.exit_status,
                console_tail=self.qemu.log.tail(),
            ) from error
        self.bar = bar_from_pci(await self.qemu.execute("query-pci"), BAR_SLOT, _BAR_REGION)

    def close(self) -> None:
        """Ends QEMU and gives everything back. Safe to call at any time, and twice."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        try:
            if hasattr(self, "qemu"):
                loop.run(self.qemu.quit())
                self.qemu.ram.close()
        finally:
            loop.close()

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
        log_start = len(self.qemu.log.text)
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
    def memory(self) -> PhysicalMemory:
        """Guest RAM. Walk it only inside :meth:`paused`, or at a checkpoint."""
        return self.qemu.ram.memory

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A block during which no vCPU runs."""
        self.on_loop(self.qemu.execute("stop"))
        try:
            yield
        finally:
            self.on_loop(self.qemu.execute("cont"))

    def console(self) -> fdspawn:
        """A shell in the guest, as a pexpect spawn, on a serial line of its own.

        :raises MachineryError: there is no busybox in the guest (it was not on the host).
        """
        self.on_loop(self.agent.request("shell"))
        own = self.qemu.end("shell").dup()
        own.setblocking(True)
        return fdspawn(own.detach(), encoding="utf-8", timeout=30)


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
