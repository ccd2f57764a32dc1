"""The words between host and guest, both directions, as pure values (docs/protocol.md).

Two channels. The *agent* channel carries frames, ``VERB ID LENGTH\\n`` and LENGTH bytes, between the host
and PID 1 (guest_tests/lib/init.c). The *events* channel carries lines that guest programs write themselves
(guest_tests/lib/checkpoint.c), so that nothing stands between a checkpoint and the host.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from harness.errors import ProtocolError
from harness.printable import printable

_HEADER_LIMIT = 128
#: Of one frame to the guest.
PAYLOAD_MAX_BYTES = 256 << 20
#: The BAR that scenarios map. It is called "bar"; another, "bar0".
TESTED_BAR = 2
ORDINARY = "ram"


def bar_name(number: int) -> str:
    """What BAR ``number`` (0 to 5) of the device is called, here, in observations and in events."""
    return "bar" if number == TESTED_BAR else f"bar{number}"


BACKINGS = (ORDINARY, *(bar_name(number) for number in range(6)))


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the agent channel. ``id`` pairs an answer with its request; 0 is nobody's."""

    verb: str
    id: int
    payload: bytes = b""

    def encode(self) -> bytes:
        """The bytes on the wire."""
        return f"{self.verb} {self.id} {len(self.payload)}\n".encode("ascii") + self.payload

    @property
    def text(self) -> str:
        """The payload as printable text, for the verbs whose payload is words."""
        return printable(self.payload)


class FrameDecoder:
    """Bytes in, as they come; whole frames out."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Adds bytes and returns the frames that are now whole.

        :raises ProtocolError: for a header that is not ``VERB ID LENGTH``.
        """
        self._pending += data
        frames: list[Frame] = []
        while (newline := self._pending.find(b"\n", 0, _HEADER_LIMIT)) >= 0:
            words = bytes(self._pending[:newline]).split()
            if len(words) != 3 or not words[1].isdigit() or not words[2].isdigit():
                raise ProtocolError(f"agent: header {bytes(self._pending[:newline])!r}, expected 'VERB ID LENGTH'")
            end = newline + 1 + int(words[2])
            if len(self._pending) < end:
                return frames
            frames.append(
                Frame(words[0].decode("ascii", "replace"), int(words[1]), bytes(self._pending[newline + 1 : end]))
            )
            del self._pending[:end]
        if len(self._pending) >= _HEADER_LIMIT:
            raise ProtocolError(f"agent: no header in {bytes(self._pending[:_HEADER_LIMIT])!r}")
        return frames


def run_payload(argv: Sequence[str], environment: Mapping[str, str] | None = None) -> bytes:
    """The payload of ``run``: NUL-terminated NAME=VALUE words, an empty word, then argv.

    :raises ProtocolError: for an empty argv, or a word that holds a NUL.
    """
    words = [f"{name}={value}" for name, value in (environment or {}).items()] + [""] + list(argv)
    if not argv or any("\0" in word for word in words):
        raise ProtocolError(f"run: argv {list(argv)!r} is empty or holds a NUL")
    return b"".join(word.encode() + b"\0" for word in words)


def put_payload(path: str, data: bytes, mode: int = 0o755) -> bytes:
    """The payload of ``put``: a line with mode and path, then the file."""
    return f"{mode:o} {path}\n".encode() + data


def parse_ready(text: str) -> dict[str, str]:
    """The ``name=value`` lines of the agent's first frame."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


class Where(enum.Enum):
    """Why a process waits for the host."""

    REGISTERING = "process"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True, slots=True)
class WaitEvent:
    """A process waits for the host: to be registered, or at a checkpoint.

    ``name`` is the process's name, or the checkpoint's. ``release_vaddr`` holds ``nonce`` until the host
    writes something else there.
    """

    where: Where
    name: str
    pid: int
    parent_pid: int
    release_vaddr: int
    nonce: int


@dataclass(frozen=True, slots=True)
class MappingEvent:
    """A process named one of its mappings. ``prot`` is mmap's, ``backing`` a :data:`BACKINGS` word."""

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
    """What the guest read of /proc/PID/pagemap for a mapping, one word a page from its start."""

    mapping: str
    pid: int
    words: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GoneEvent:
    """A process has been reaped: its page tables are nobody's."""

    pid: int


Event = WaitEvent | MappingEvent | UnmappingEvent | PagemapEvent | GoneEvent


def parse_event(line: str) -> Event:
    """One line of the events channel.

    :raises ProtocolError: for anything that guest_tests/lib/checkpoint.c does not say.
    """
    verb, *words = line.split() or [""]
    try:
        match verb, words:
            case "process" | "checkpoint", [name, pid, parent_pid, vaddr, nonce]:
                return WaitEvent(Where(verb), name, int(pid), int(parent_pid), int(vaddr, 16), int(nonce, 16))
            case "mapping", [name, pid, vaddr, size, prot, backing, offset] if backing in BACKINGS:
                return MappingEvent(
                    name, int(pid), int(vaddr, 16), int(size, 16), int(prot, 16), backing, int(offset, 16)
                )
            case "unmapping", [name, pid]:
                return UnmappingEvent(name, int(pid))
            case "pagemap", [name, pid, *pages]:
                return PagemapEvent(name, int(pid), _unpacked_words(pages))
            case "gone", [pid]:
                return GoneEvent(int(pid))
    except ValueError:
        pass
    raise ProtocolError(f"events: {line!r} is no event of docs/protocol.md")


def _unpacked_words(runs: Sequence[str]) -> tuple[int, ...]:
    """``WORD*COUNT`` ... as one word a page."""
    words: list[int] = []
    for run in runs:
        word, _, count = run.partition("*")
        words += [int(word, 16)] * int(count)
    return tuple(words)


class LineDecoder:
    """Bytes in, as they come; whole printable lines out, without their newline."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[str]:
        """Adds bytes and returns the lines that are now whole, empty ones left out."""
        *lines, self._pending = (self._pending + data).split(b"\n")
        return [text for line in lines if (text := printable(line.strip(b"\r")))]
