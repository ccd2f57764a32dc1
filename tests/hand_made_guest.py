"""A simulated guest: RAM with page tables, waiting processes, and a QEMU that can only stop and continue."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

from harness.pagetable import Level, PhysicalMemory, Region

PAGE = 4096
TABLE = 0x67  # P W U A D
WRITABLE = 0x8000000000000867  # P W U A D SOFT_DIRTY NX: an anonymous page
READ_ONLY = 0x8000000000000825
HUGE = 1 << 7
SPECIAL = 1 << 9
SAVED_DIRTY = 1 << 58
LA57 = 1 << 12

STACK = 0x7FFD12345678
NONCE = 0x4D00000003
BAR_VADDR = 0x7F4000000000
BAR = Region("bar", 0x380000000, 2 << 30)


@dataclass
class Guest:
    """Guest RAM, 1 MiB, and a bump allocator for its pages; page 0 stays empty."""

    ram: bytearray = field(default_factory=lambda: bytearray(256 * PAGE), repr=False)
    next_page: int = 2 * PAGE

    def page(self, count: int = 1, align: int = 1) -> int:
        """The physical address of fresh pages."""
        self.next_page = -(-self.next_page // (align * PAGE)) * align * PAGE
        page, self.next_page = self.next_page, self.next_page + count * PAGE
        return page

    def load(self, paddr: int) -> int:
        return int.from_bytes(self.ram[paddr : paddr + 8], "little")

    def store(self, paddr: int, word: int) -> None:
        self.ram[paddr : paddr + 8] = word.to_bytes(8, "little")

    def map(self, root: int, vaddr: int, raw: int, level: Level = Level.PTE, *, five_level: bool = False) -> int:
        """Writes one leaf and the tables above it. Returns the physical address of the leaf's entry."""
        table = root
        for shift in (48, 39, 30, 21, 12)[0 if five_level else 1 :]:
            slot = table + (vaddr >> shift & 511) * 8
            if shift == level.shift:
                self.store(slot, raw)
                return slot
            if not self.load(slot):
                self.store(slot, self.page() | TABLE)
            table = self.load(slot) & ~0xFFF
        raise AssertionError(level)

    def process(self, nonce: int = NONCE, *, root: int | None = None, five_level: bool = False) -> Running:
        """A process with a release word on its stack."""
        root = self.page() if root is None else root
        stack = self.page()
        entry = self.map(root, STACK, stack | WRITABLE, five_level=five_level)
        word = stack + STACK % PAGE
        self.store(word, nonce)
        return Running(root, entry, word)


@dataclass
class Running:
    """A process of :class:`Guest`, as physical addresses."""

    root: int
    stack_entry: int
    release_word: int


@dataclass
class FakeQemu:
    """Answers like QEMU. Reading memory or registers while the machine runs fails the test."""

    guest: Guest
    stops: list[str]  # the registers at each stop; the last one is repeated
    commands: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # of the human monitor
    registers_of_iommu: dict[int, int | None] = field(
        default_factory=lambda: {0xFED90000: 0x10, 0xFED9001C: 0xC7000000}
    )

    @property
    def running(self) -> bool:
        moves = [command for command in self.commands if command in ("stop", "cont")]
        return not moves or moves[-1] == "cont"

    @property
    def ram(self) -> SimpleNamespace:
        assert not self.running, "guest RAM is read while the guest runs"
        return SimpleNamespace(memory=PhysicalMemory(self.guest.ram))

    async def stop(self) -> None:
        await self.execute("stop")

    async def resume(self) -> None:
        await self.execute("cont")

    async def execute(self, command: str, arguments: dict[str, object] | None = None) -> object:
        self.commands.append(command)
        if command != "human-monitor-command":
            return {}
        assert not self.running, "registers are read while the guest runs"
        line = str((arguments or {})["command-line"])
        self.lines.append(line)
        if line.startswith("xp "):
            return self._register(line)
        assert line == "info registers -a"
        return self.stops.pop(0) if len(self.stops) > 1 else self.stops[0]

    def _register(self, line: str) -> str:
        """The answer of QEMU 7.2 to "xp /1gx ADDRESS"."""
        _, form, at = line.split()
        word = self.registers_of_iommu[int(at, 16)]
        digits = {"/1wx": 8, "/1gx": 16}[form]
        return f"{int(at, 16):016x}: " + ("Cannot access memory\r\n" if word is None else f"0x{word:0{digits}x}\r\n")


def registers(*cr3s: int, cr4: int = 0x3506F0) -> str:
    """QEMU's output for vCPUs with these CR3, in user mode of a 64-bit guest."""
    return "".join(
        f"\r\nCPU#{number}\r\nRAX=0000000000000000 RBX=0000000000000000\r\n"
        f"CR0=80050033 CR2=00007f0000000000 CR3={cr3:016x} CR4={cr4:08x}\r\nEFER=0000000000000d01\r\n"
        for number, cr3 in enumerate(cr3s)
    )
