"""The protocol between host and guest, in both directions, as pure values (docs/protocol.md).

Two channels. The *agent* channel carries frames, ``VERB ID LENGTH\\n`` and LENGTH bytes, between the host
and the agent in PID 1 (guest_tests/lib/agent). The *events* channel carries lines that guest programs write themselves
(guest_tests/lib/events.c), so that a checkpoint reaches the host directly.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import ProtocolError
from harness.guest import bounds
from harness.guest.bounds import shown
from harness.printable import printable

_HEADER_LIMIT = 128
#: The largest payload of a frame, in both directions.
PAYLOAD_MAX_BYTES = 256 << 20
#: The BAR that scenarios map. Its name is "bar"; that of another is, for instance, "bar0".
TESTED_BAR = 2
ORDINARY = "ram"
#: What the agent reports when it is ready, and the form of each value (guest_tests/lib/init/main.c describe()).
_READY = {
    "release": re.compile(r"[!-~]{1,64}"),  # __NEW_UTS_LEN
    "version": re.compile(r"[ -~]{0,64}"),
    "taint": re.compile(r"[0-9]{1,20}"),
    "channel": re.compile(r"(virtio|serial)?"),
    "missing": re.compile(r"[ -~]{0,4000}"),
    "vfio_bdf": re.compile(rf"({bounds.BDF})?"),
    "vfio_group": re.compile(r"[!-~]{0,15}"),
    "vfio_why": re.compile(r"[ -~]{0,1000}"),
}


def bar_name(number: int) -> str:
    """The name of BAR ``number`` (0 to 5) of the device, in observations and in events."""
    return "bar" if number == TESTED_BAR else f"bar{number}"


BACKINGS = (ORDINARY, *(bar_name(number) for number in range(6)))


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the agent channel. ``id`` pairs an answer with its request; 0 belongs to none."""

    verb: str
    id: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """The bytes on the wire."""
        return f"{self.verb} {self.id} {len(self.payload)}\n".encode("ascii") + self.payload

    @property
    def text(self) -> str:
        """The payload as printable text, for verbs whose payload is text."""
        return printable(self.payload)


class FrameDecoder:
    """Bytes in, as they arrive; complete frames out."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Add bytes, and return the frames that are now complete.

        :raises ProtocolError: a header is not ``VERB ID LENGTH``, or announces too much.
        """
        self._pending += data
        frames: list[Frame] = []
        while (newline := self._pending.find(b"\n", 0, _HEADER_LIMIT)) >= 0:
            words = bytes(self._pending[:newline]).split()
            if len(words) != 3 or not words[1].isdigit() or not words[2].isdigit():
                raise ProtocolError(f"agent: header {bytes(self._pending[:newline])!r}, expected 'VERB ID LENGTH'")
            length = int(words[2])
            if length > PAYLOAD_MAX_BYTES:
                raise ProtocolError(f"agent: a frame of {length} bytes, expected at most {PAYLOAD_MAX_BYTES}")
            end = newline + 1 + length
            if len(self._pending) < end:
                return frames
            frames.append(
                Frame(words[0].decode("ascii", "replace"), int(words[1]), bytes(self._pending[newline + 1 : end]))
            )
            del self._pending[:end]
        if len(self._pending) >= _HEADER_LIMIT:
            raise ProtocolError(f"agent: {bytes(self._pending[:_HEADER_LIMIT])!r}, expected a header 'VERB ID LENGTH'")
        return frames


def run_payload(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> bytes:
    """The payload of ``run``: NUL-terminated NAME=VALUE words, an empty word, then argv.

    :raises ProtocolError: argv is empty, or a word contains a NUL.
    """
    words = [f"{name}={value}" for name, value in (environment or {}).items()] + [""] + list(argv)
    if not argv or any("\0" in word for word in words):
        raise ProtocolError(f"run: argv {list(argv)!r} is empty or contains a NUL")
    return b"".join(word.encode() + b"\0" for word in words)


def put_payload(path: str, data: bytes, mode: int = 0o755) -> bytes:
    """The payload of ``put``: a line with mode and path, then the file's contents."""
    return f"{mode:o} {path}\n".encode() + data


def parse_ready(text: str) -> dict[str, str]:
    """The ``name=value`` lines of the agent's first frame.

    :raises ProtocolError: a required name is missing, or a value is malformed.
    """
    if len(text) > bounds.READY_MAX_BYTES:
        raise ProtocolError(f"agent: ready has {len(text)} characters, expected at most {bounds.READY_MAX_BYTES}")
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    for name, allowed in _READY.items():
        if not allowed.fullmatch(found.get(name, "")):
            said = f"{name}={found[name]}" if name in found else text
            raise ProtocolError(f"agent: ready {shown(said)}, expected {name}= and {allowed.pattern}")
    return found


def parse_refusal(text: str) -> tuple[int, str]:
    """The errno and the reason in the payload of ``error`` and ``failed``.

    :raises ProtocolError: it does not begin with an errno.
    """
    number, _, reason = text.partition(" ")
    return bounds.decimal(number, "errno", 1, bounds.ERRNO_MAX), reason[: bounds.REASON_MAX]


class Where(enum.Enum):
    """Why a process waits for the host."""

    REGISTERING = "process"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class WaitEvent:
    """A process waits for the host, either to be registered or at a checkpoint.

    ``name`` is that of the process or of the checkpoint. The word at ``release_vaddr`` is ``nonce`` until the host
    writes another value.
    """

    where: Where
    name: str
    pid: int
    parent_pid: int
    release_vaddr: int
    nonce: int


@dataclass(frozen=True, slots=True)
class MappingEvent:
    """A process declared one of its mappings. ``prot`` is that of mmap(), ``backing`` one of :data:`BACKINGS`."""

    name: str
    pid: int
    vaddr: int
    size_bytes: int
    prot: int
    backing: str
    offset_bytes: int


@dataclass(frozen=True, slots=True)
class UnmappingEvent:
    """A process no longer has a mapping."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class PagemapEvent:
    """What the guest read from /proc/PID/pagemap for a mapping: one word per page, from its start."""

    mapping: str
    pid: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GoneEvent:
    """A process has been reaped, so its page tables no longer exist."""

    pid: int


@dataclass(frozen=True, slots=True)
class VmEvent:
    """A process made a virtual machine with KVM; the file descriptors are its own."""

    name: str
    pid: int
    vm_fd: int
    vcpu_fd: int


@dataclass(frozen=True, slots=True)
class SlotEvent:
    """A virtual machine has a slot of memory. ``slot.vaddr`` is guest-physical, ``owner_vaddr`` is in its process.

    Or a device has a range of IO virtual addresses: ``vm`` is then the name of the IOMMU's tables.
    """

    vm: str
    slot: MappingEvent
    owner_vaddr: int


@dataclass(frozen=True, slots=True)
class SlotGoneEvent:
    """A virtual machine no longer has a slot."""

    name: str
    vm: str
    pid: int


@dataclass(frozen=True, slots=True)
class CountsEvent:
    """What KVM counts for a virtual machine: leaves of 4 KiB, 2 MiB and 1 GiB (KVM_GET_STATS_FD)."""

    vm: str
    pid: int
    leaves: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class VmGoneEvent:
    """A virtual machine was closed."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class IommuEvent:
    """A process watches the IOMMU's tables of the device at a PCI address. Their ranges are slots, at IOVAs."""

    name: str
    pid: int
    bdf: str


@dataclass(frozen=True, slots=True)
class DmaEvent:
    """How many bytes VFIO has mapped for a device by its own account (VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA)."""

    iommu: str
    pid: int
    size_bytes: int


NestedEvent = VmEvent | SlotEvent | SlotGoneEvent | CountsEvent | VmGoneEvent | IommuEvent | DmaEvent
Event = WaitEvent | MappingEvent | UnmappingEvent | PagemapEvent | GoneEvent | NestedEvent


def parse_event(line: str) -> Event:
    """Parse one line of the events channel.

    :raises ProtocolError: it is not a line of guest_tests/lib/events.c, or exceeds what
        :mod:`harness.guest.bounds` allows.
    """
    try:
        event = _event(line)
    except ProtocolError as error:
        raise ProtocolError(f"events: {shown(line)}: {error}") from None
    if event is None:
        raise ProtocolError(f"events: {shown(line)} is not an event of docs/protocol.md")
    return event


def _event(line: str) -> Event | None:
    verb, *words = line.split(" ")
    match verb, words:
        case "process" | "checkpoint", [name, pid, parent_pid, vaddr, nonce]:
            return WaitEvent(
                Where(verb),
                bounds.name(name),
                bounds.pid(pid),
                bounds.pid(parent_pid, least=0),
                bounds.user_word_vaddr(vaddr),
                bounds.word(nonce, "nonce"),
            )
        case "mapping", [name, pid, vaddr, size, prot, backing, offset] if backing in BACKINGS:
            start, size_bytes = bounds.user_range(vaddr, size)
            offset_bytes = bounds.page_multiple(offset, "offset")
            return MappingEvent(
                bounds.name(name), bounds.pid(pid), start, size_bytes, bounds.prot(prot), backing, offset_bytes
            )
        case "unmapping", [name, pid]:
            return UnmappingEvent(bounds.name(name), bounds.pid(pid))
        case "pagemap", [name, pid, *runs]:
            return PagemapEvent(bounds.name(name), bounds.pid(pid), _unpacked_words(runs))
        case "gone", [pid]:
            return GoneEvent(bounds.pid(pid))
    return _nested_event(verb, words)


def _nested_event(verb: str, words: Sequence[str]) -> NestedEvent | None:
    match verb, words:
        case "vm", [name, pid, vm_fd, vcpu_fd]:
            fds = [bounds.decimal(fd, "file descriptor", 0, bounds.FD_MAX) for fd in (vm_fd, vcpu_fd)]
            return VmEvent(bounds.name(name), bounds.pid(pid), *fds)
        case "slot", [name, vm, pid, gpa, size, vaddr, prot, backing, offset] if backing in BACKINGS:
            start, size_bytes = bounds.guest_range(gpa, size)
            owner_vaddr, _ = bounds.user_range(vaddr, size)
            offset_bytes = bounds.page_multiple(offset, "offset")
            rights = bounds.prot(prot)
            slot = MappingEvent(bounds.name(name), bounds.pid(pid), start, size_bytes, rights, backing, offset_bytes)
            return SlotEvent(bounds.name(vm), slot, owner_vaddr)
        case "slot-gone", [name, vm, pid]:
            return SlotGoneEvent(bounds.name(name), bounds.name(vm), bounds.pid(pid))
        case "counts", [vm, pid, *counts] if len(counts) == 3:
            leaves = tuple(bounds.decimal(count, "count", 0, bounds.COUNT_MAX) for count in counts)
            return CountsEvent(bounds.name(vm), bounds.pid(pid), leaves)
        case "vm-gone", [name, pid]:
            return VmGoneEvent(bounds.name(name), bounds.pid(pid))
        case "iommu", [name, pid, bdf]:
            return IommuEvent(bounds.name(name), bounds.pid(pid), bounds.bdf(bdf))
        case "dma", [name, pid, size]:
            return DmaEvent(bounds.name(name), bounds.pid(pid), bounds.page_multiple(size, "size"))
    return None


def _unpacked_words(runs: Sequence[str]) -> tuple[int, ...]:
    """``WORD*COUNT`` ... as one word per page."""
    words: list[int] = []
    for run in runs:
        word, _, count = run.partition("*")
        left = bounds.PAGEMAP_WORDS_MAX - len(words)
        if not left:
            raise ProtocolError(f"expected at most {bounds.PAGEMAP_WORDS_MAX} pagemap words")
        words += [bounds.word(word, "pagemap word")] * bounds.decimal(count, "count", 1, left)
    return tuple(words)
