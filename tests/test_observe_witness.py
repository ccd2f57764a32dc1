"""Tests for the host's witness, with simulated page tables: finding a root, releasing a process, showing a stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest

from harness.errors import ClaimFailed, DeadlineError, ProtocolError, UsageError
from harness.guest import bounds
from harness.guest.protocol import GoneEvent, MappingEvent, PagemapEvent, UnmappingEvent, WaitEvent, Where
from harness.host.aside import Abandoned
from harness.observe.bars import bars_from_pci, bars_from_sysfs
from harness.observe.witness import Process, Witness, needs_registration
from harness.pagetable import Bits, Layout, Level, Region
from harness.qemu.deadline import Deadline
from harness.qemu.process import Qemu
from tests.hand_made_guest import (
    BAR,
    BAR_VADDR,
    HUGE,
    LA57,
    NONCE,
    PAGE,
    READ_ONLY,
    SAVED_DIRTY,
    SPECIAL,
    STACK,
    WRITABLE,
    FakeQemu,
    Guest,
    registers,
)


def registering(pid: int = 77, *, name: str = "parent", parent_pid: int = 1, nonce: int = NONCE) -> WaitEvent:
    return WaitEvent(Where.REGISTERING, name, pid, parent_pid, STACK, nonce)


def waiting(pid: int = 77, *, nonce: int = NONCE, vaddr: int = STACK) -> WaitEvent:
    return WaitEvent(Where.CHECKPOINT, "forked", pid, 1, vaddr, nonce)


def witness_of(guest: Guest, *stops: str, layout: Layout = Layout.MODERN) -> tuple[Witness, FakeQemu]:
    qemu = FakeQemu(guest, list(stops))
    return Witness(cast(Qemu, qemu), [BAR], layout), qemu


def registered(guest: Guest, *stops: str, event: WaitEvent | None = None) -> tuple[Witness, FakeQemu]:
    """A witness with one registered process, while the machine is stopped."""
    witness, qemu = witness_of(guest, *stops)
    asyncio.run(witness.register(event or registering(), Deadline(5.0, None)))
    return witness, qemu


# --- finding the root ----------------------------------------------------------------------------


def test_the_root_is_that_of_the_vcpu_that_maps_the_release_word() -> None:
    guest = Guest()
    never_started, other, junk, ours = 0, guest.process(nonce=0x4E00000003), guest.page(), guest.process()
    guest.ram[junk : junk + PAGE] = b"\xff" * PAGE
    witness, qemu = witness_of(guest, registers(never_started, other.root, junk, ours.root))
    process = asyncio.run(witness.register(registering(), Deadline(5.0, None)))
    assert (process.root, process.name, process.pid, process.five_level) == (ours.root, "parent", 77, False)
    assert witness.processes == {77: process}
    assert qemu.commands == ["stop", "human-monitor-command"], "the machine must be stopped when it returns"


def test_pcid_and_lam_are_not_part_of_the_root() -> None:
    guest = Guest()
    ours = guest.process()
    cr3 = ours.root | 0x801 | 1 << 61 | 1 << 63
    witness, _ = registered(guest, registers(0, cr3))
    assert witness.processes[77].root == ours.root


def test_with_page_table_isolation_the_kernels_root_is_taken() -> None:
    guest = Guest()
    kernel_root = guest.page(count=2, align=2)
    user_root = kernel_root | PAGE
    ours = guest.process(root=kernel_root)
    slot = (STACK >> 39) * 8
    guest.store(user_root + slot, guest.load(kernel_root + slot))  # both map the user half
    witness, _ = registered(guest, registers(0, 0, user_root | 0x801, 0))
    assert witness.processes[77].root == kernel_root

    guest.store(user_root + slot, 0)
    witness.release(waiting())
    assert guest.load(ours.release_word) == 0, "only the kernel's root must lead to the word"


@pytest.mark.parametrize("neighbour", ["empty", "junk", "another process"])
def test_a_root_at_an_odd_page_without_isolation(neighbour: str) -> None:
    guest = Guest()
    before = guest.page(count=2, align=2)
    ours = guest.process(root=before | PAGE)
    if neighbour == "junk":
        guest.ram[before : before + PAGE] = b"\xff" * PAGE
    elif neighbour == "another process":
        guest.process(root=before, nonce=0x4E00000003)
    witness, _ = registered(guest, registers(ours.root))
    assert witness.processes[77].root == before | PAGE


def test_a_process_on_no_vcpu_is_found_at_a_later_stop() -> None:
    guest = Guest()
    other, ours = guest.process(nonce=0x4E00000003), guest.process()
    away, here = registers(other.root, 0), registers(other.root, ours.root)
    witness, qemu = registered(guest, away, away, here)
    assert witness.processes[77].root == ours.root
    look = ["stop", "human-monitor-command"]
    assert qemu.commands == [*look, "cont", *look, "cont", *look]


def test_a_process_that_never_is_on_a_vcpu() -> None:
    guest = Guest()
    witness, qemu = witness_of(guest, registers(guest.process(nonce=0x4E00000003).root, 0))
    with pytest.raises(DeadlineError, match=r"process parent \(pid 77\) .* no vCPU had its page tables"):
        asyncio.run(witness.register(registering(), Deadline(-1.0, None)))
    assert witness.processes == {}
    assert qemu.running


def test_a_word_that_is_not_the_nonce_is_refused() -> None:
    guest = Guest()
    ours = guest.process(nonce=NONCE + 2)
    witness, _ = witness_of(guest, registers(ours.root))
    with pytest.raises(DeadlineError):
        asyncio.run(witness.register(registering(), Deadline(-1.0, None)))


def test_each_vcpu_has_its_own_depth() -> None:
    guest = Guest()
    ours = guest.process(five_level=True)
    witness, _ = registered(guest, registers(0) + registers(ours.root, cr4=0x3506F0 | LA57).replace("CPU#0", "CPU#1"))
    process = witness.processes[77]
    assert (process.root, process.five_level) == (ours.root, True)
    witness.release(waiting())
    assert guest.load(ours.release_word) == 0


def test_a_five_level_address_is_no_error_on_a_vcpu_with_four_levels() -> None:
    guest = Guest()
    root, stack, high = guest.page(), guest.page(), 0xFF000012345678
    guest.map(root, high, stack | WRITABLE, five_level=True)
    guest.store(stack + 0x678, NONCE)
    event = WaitEvent(Where.REGISTERING, "parent", 77, 1, high, NONCE)
    text = registers(0) + registers(root, cr4=LA57).replace("CPU#0", "CPU#1")
    witness, _ = registered(guest, text, event=event)
    assert witness.processes[77].root == root


# --- at a checkpoint -----------------------------------------------------------------------------


def test_verify_uses_the_process_s_own_tables() -> None:
    guest = Guest()
    ours = guest.process()
    witness, qemu = registered(guest, registers(ours.root))
    qemu.stops[:] = [registers(0)]  # the vCPUs may run other processes by now
    guest.store(ours.release_word, NONCE + 2)
    assert witness.verify(waiting(nonce=NONCE + 2)).pid == 77
    with pytest.raises(ProtocolError, match=r"parent \(pid 77\) waits at 'forked', but .* did it exec"):
        witness.verify(waiting(nonce=NONCE))
    with pytest.raises(ProtocolError, match="did it exec"):
        witness.verify(waiting(nonce=0, vaddr=STACK + PAGE))


def test_a_process_that_never_registered() -> None:
    guest = Guest()
    witness, _ = registered(guest, registers(guest.process().root))
    for refused in (witness.verify, witness.release):
        with pytest.raises(ProtocolError, match="pid 78 never registered; call hp_start, hp_fork or hp_register"):
            refused(waiting(78))


@pytest.mark.parametrize("level", [Level.PTE, Level.PMD])
def test_release_writes_only_its_word(level: Level) -> None:
    guest = Guest()
    ours = guest.process()
    vaddr = STACK
    if level is Level.PMD:  # the stack is in a huge page: the first 2 MiB, which contain all RAM of this guest
        guest.map(ours.root, STACK, WRITABLE | HUGE, Level.PMD)
        ours.release_word = STACK % len(guest.ram)
        guest.store(ours.release_word, NONCE)
        vaddr = (STACK & -level.size_bytes) + ours.release_word
    event = WaitEvent(Where.REGISTERING, "parent", 77, 1, vaddr, NONCE)
    witness, _ = registered(guest, registers(ours.root), event=event)
    before = bytes(guest.ram)
    witness.release(waiting(vaddr=vaddr))
    after = bytes(guest.ram)
    word = slice(ours.release_word, ours.release_word + 8)
    assert (before[word], after[word]) == (NONCE.to_bytes(8, "little"), bytes(8))
    assert before[: word.start] + before[word.stop :] == after[: word.start] + after[word.stop :]


@pytest.mark.parametrize("flags", [READ_ONLY, READ_ONLY | SAVED_DIRTY, 0])
def test_release_writes_only_to_a_private_page(flags: int) -> None:
    guest = Guest()
    ours = guest.process()
    witness, _ = registered(guest, registers(ours.root))
    guest.store(ours.stack_entry, ours.release_word & ~0xFFF | flags if flags else 0)
    before = bytes(guest.ram)
    with pytest.raises(ProtocolError, match="the release word of parent is not in a page of its own") as caught:
        witness.release(waiting())
    assert f"walk of {STACK:#018x}" in str(caught.value)
    assert bytes(guest.ram) == before


# --- what a stop shows ---------------------------------------------------------------------------


def mapping(pid: int, name: str = "bar", vaddr: int = BAR_VADDR, size: int = 1 << 30) -> MappingEvent:
    return MappingEvent(name, pid, vaddr, size, 3, "bar" if name == "bar" else "ram", 0)


@dataclass
class Family:
    """Parent and child that map one pud of the BAR. The child has SAVED_DIRTY instead of D."""

    guest: Guest = field(default_factory=Guest)

    def __post_init__(self) -> None:
        parent, child = self.guest.process(), self.guest.process(nonce=NONCE + 1)
        leaf = BAR.start_paddr | HUGE | SPECIAL
        self.parent_raw = leaf | 0x8000000000000067
        self.child_raw = leaf | 0x8000000000000025 | SAVED_DIRTY
        self.guest.map(parent.root, BAR_VADDR, self.parent_raw, Level.PUD)
        self.child_slot = self.guest.map(child.root, BAR_VADDR, self.child_raw, Level.PUD)
        self.witness, self.qemu = registered(self.guest, registers(parent.root, child.root))
        self.witness.note(mapping(77))
        born = registering(78, name="child", parent_pid=77, nonce=NONCE + 1)
        asyncio.run(self.witness.register(born, Deadline(5.0, None)))


def test_a_child_inherits_the_mappings_of_its_parent() -> None:
    witness = Family().witness
    witness.note(mapping(77, "later", 0x7F0000000000, PAGE))
    assert witness.processes[78].mappings == {"bar": mapping(78)}
    witness.note(UnmappingEvent("bar", 78))
    assert witness.processes[78].mappings == {}
    assert sorted(witness.processes[77].mappings) == ["bar", "later"]


def test_a_program_registers_again_after_exec() -> None:
    family = Family()
    family.witness.note(GoneEvent(78))
    execed = family.guest.process(NONCE + 2)
    family.qemu.stops[:] = [registers(execed.root)]
    asyncio.run(
        family.witness.register(registering(78, name="child", parent_pid=0, nonce=NONCE + 2), Deadline(5.0, None))
    )
    assert family.witness.processes[78].root == execed.root
    assert family.witness.processes[78].mappings == {}


def test_processes_that_share_their_memory_have_one_root_and_a_word_each() -> None:
    guest = Guest()
    parent = guest.process()
    guest.store(parent.release_word + 64, NONCE + 1)
    witness, _ = registered(guest, registers(parent.root))
    born = WaitEvent(Where.REGISTERING, "child", 78, 77, STACK + 64, NONCE + 1)
    asyncio.run(witness.register(born, Deadline(5.0, None)))
    assert witness.processes[77].root == witness.processes[78].root
    witness.release(born)
    assert guest.load(parent.release_word) == NONCE


def test_a_stop_shows_parent_and_child() -> None:
    family = Family()
    family.witness.note(PagemapEvent("bar", 77, (1 << 55, 0)))
    at = family.witness.snapshot("forked", 77)
    assert (at.checkpoint, at.pid, [process.name for process in at]) == ("forked", 77, ["parent", "child"])
    parent, child = at["parent"].leaf("bar"), at["child"].leaf("bar")
    assert (parent.raw, parent.level, parent.write, parent.dirty) == (family.parent_raw, Level.PUD, True, True)
    assert (child.raw, child.write, child.dirty) == (family.child_raw, False, False)
    assert Bits.SAVED_DIRTY in child.bits
    assert parent.pfn == child.pfn == BAR.start_paddr // PAGE
    assert [word.raw for word in at["parent"].pagemap("bar")] == [1 << 55, 0]
    assert at["child"].pagemap("bar") == ()
    assert at.stopped_s > 0

    shown = [str(one) for one in at.observations()]
    assert shown == [
        f"forked parent bar+0x0: pud {family.parent_raw:#018x} P W U A D PSE SPECIAL NX bar+0x0",
        f"forked child bar+0x0: pud {family.child_raw:#018x} P U A PSE SPECIAL SAVED_DIRTY NX bar+0x0",
    ]
    assert [one.pagemap for one in at.observations()] == [1 << 55, None]


def test_a_stop_records_how_long_the_machine_was_stopped() -> None:
    family = Family()
    before_s = time.perf_counter()
    asyncio.run(family.witness.stop())
    stopped_s = family.witness.snapshot("forked", 77).stopped_s
    assert 0 < stopped_s <= time.perf_counter() - before_s


def test_reading_can_be_abandoned_at_every_leaf_and_hole() -> None:
    family = Family()
    family.witness.note(mapping(77, "hole", 0x7F0000000000, PAGE))
    calls: list[int] = []
    at = family.witness.snapshot("forked", 77, lambda: calls.append(1))
    assert len(calls) == len(at.observations()) == 3
    for allowed in range(3):
        with pytest.raises(Abandoned):
            family.witness.snapshot("forked", 77, abandoned_after(allowed))
    family.witness.snapshot("forked", 77, abandoned_after(3))


def abandoned_after(calls: int) -> Callable[[], None]:
    """Return a function that raises Abandoned after this number of calls."""
    left = iter(range(calls))

    def check() -> None:
        if next(left, None) is None:
            raise Abandoned

    return check


def test_the_leaves_of_all_stops_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "LEAVES_MAX", 4)
    family = Family()
    for _ in range(2):
        assert len(family.witness.snapshot("forked", 77).observations()) == 2
    with pytest.raises(
        ProtocolError, match="mapping bar: all stops of this run have more than 4 leaves and holes; declare less"
    ):
        family.witness.snapshot("forked", 77)


def test_pagemap_words_are_dropped_with_their_mapping() -> None:
    witness = Family().witness
    for event in (mapping(77), UnmappingEvent("bar", 77)):
        witness.note(mapping(77))
        witness.note(PagemapEvent("bar", 77, (1 << 55,)))
        assert witness.processes[77].pagemap == {"bar": (1 << 55,)}
        witness.note(event)
        assert witness.processes[77].pagemap == {}


def test_a_stop_does_not_change_later() -> None:
    family = Family()
    at = family.witness.snapshot("forked", 77)
    family.guest.ram[:] = bytes(len(family.guest.ram))
    assert at["child"].leaf("bar").raw == family.child_raw


def test_a_kernel_without_saved_dirty_is_read_as_such() -> None:
    guest = Guest()
    ours = guest.process()
    guest.map(ours.root, BAR_VADDR, BAR.start_paddr | HUGE | 0x27 | 1 << 58, Level.PUD)
    witness, _ = witness_of(guest, registers(ours.root), layout=Layout.CLASSIC)
    asyncio.run(witness.register(registering(), Deadline(5.0, None)))
    witness.note(mapping(77))
    bits = witness.snapshot("mapped", 77)["parent"].leaf("bar").bits
    assert Bits.DEVMAP in bits
    assert Bits.SAVED_DIRTY not in bits


def test_an_unmapped_address_shows_how_far_the_walk_got() -> None:
    family = Family()
    family.guest.store(family.child_slot, 0)
    at = family.witness.snapshot("unmapped", 78)
    assert at["child"].find_leaf("bar") is None
    with pytest.raises(
        ClaimFailed, match=r"child has no entry for bar\+0x0 at 'unmapped'\nwalk of 0x00007f40"
    ) as caught:
        at["child"].leaf("bar")
    assert str(caught.value).endswith("pud 0x0000000000000000 none")
    (hole,) = [one for one in at.observations() if one.process == "child"]
    assert (hole.level, hole.bits, hole.pfn) == ("none", (), "")


def test_the_calibration_page_is_hidden_from_scenarios() -> None:
    family = Family()
    family.witness.note(mapping(77, "calibration", STACK & ~0xFFF, PAGE))
    at = family.witness.snapshot("forked", 77)
    assert at["parent"].leaf("calibration").write
    assert {one.mapping for one in at.observations()} == {"bar"}


def test_wrong_names_list_the_right_ones() -> None:
    at = Family().witness.snapshot("forked", 77)
    assert "child" in at
    assert "grandchild" not in at
    with pytest.raises(UsageError, match=r"no process 'grandchild' at 'forked'; expected one of \['child', 'parent'\]"):
        at["grandchild"]
    with pytest.raises(UsageError, match=r"child has no mapping 'rab' at 'forked'; it has \['bar'\]"):
        at["child"].leaf("rab")


def test_a_reaped_process_is_gone() -> None:
    witness = Family().witness
    witness.note(GoneEvent(78))
    assert [process.name for process in witness.snapshot("exited", 77)] == ["parent"]
    witness.note(GoneEvent(99))  # another child, which never registered
    witness.note(PagemapEvent("bar", 78, (0,)))  # pagemap was read just before the child was reaped


def test_a_pid_can_be_used_again_only_after_its_process_is_gone() -> None:
    family = Family()
    other = family.guest.process(NONCE + 4)
    family.qemu.stops[:] = [registers(other.root)]
    before = dict(family.witness.processes)
    with pytest.raises(ProtocolError, match="stranger registers as pid 78, which child has; is it in another pid name"):
        asyncio.run(family.witness.register(registering(78, name="stranger", nonce=NONCE + 4), Deadline(5.0, None)))
    assert family.witness.processes == before


def test_a_name_can_be_used_again_only_after_its_process_is_gone() -> None:
    family = Family()
    other = family.guest.process(NONCE + 4)
    family.qemu.stops[:] = [registers(other.root)]
    again = registering(79, name="child", nonce=NONCE + 4)
    with pytest.raises(ProtocolError, match="pid 79 registers as 'child', as pid 78 did; give it another name"):
        asyncio.run(family.witness.register(again, Deadline(5.0, None)))
    family.witness.note(GoneEvent(78))
    asyncio.run(family.witness.register(again, Deadline(5.0, None)))
    assert sorted(family.witness.processes) == [77, 79]


def test_pagemap_has_at_most_a_word_for_each_page_of_the_mapping() -> None:
    witness = Family().witness
    witness.note(mapping(77, "small", 0x7F0000000000, 2 * PAGE))
    witness.note(PagemapEvent("small", 77, (1, 2)))
    with pytest.raises(ProtocolError, match="3 pagemap words for small of pid 77, which has 2 pages"):
        witness.note(PagemapEvent("small", 77, (1, 2, 3)))
    witness.note(PagemapEvent("never", 77, (1, 2, 3)))  # the mapping was removed while another process read it
    assert list(witness.processes[77].pagemap) == ["small"]


def test_the_pagemap_words_and_holes_of_a_run_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "PAGEMAP_RUN_MAX", 10)
    monkeypatch.setattr(bounds, "LEAVES_MAX", 10)
    witness = Family().witness
    witness.note(MappingEvent("empty", 77, 0x7F8000000000, 4 * PAGE, 3, "ram", 0))
    for _ in range(5):
        witness.note(PagemapEvent("empty", 77, (1, 1)))
    with pytest.raises(ProtocolError, match="sent more than 10 pagemap words; declare less"):
        witness.note(PagemapEvent("empty", 77, (1,)))
    for _ in range(3):  # a leaf of each process, and the hole
        witness.snapshot("again", 77)
    with pytest.raises(ProtocolError, match="have more than 10 leaves and holes; declare less"):
        witness.snapshot("again", 77)


def test_a_mapping_ends_where_its_bar_ends() -> None:
    witness = Family().witness
    witness.note(MappingEvent("bar", 77, BAR_VADDR, 1 << 30, 3, "bar", 1 << 30))
    with pytest.raises(ProtocolError, match=r"bar of pid 77 ends at bar\+0x80001000, but bar has 0x80000000 bytes"):
        witness.note(MappingEvent("bar", 77, BAR_VADDR, 1 << 30, 3, "bar", (1 << 30) + PAGE))
    with pytest.raises(ProtocolError, match="but bar3 has 0x0 bytes"):
        witness.note(MappingEvent("bar", 77, BAR_VADDR, PAGE, 3, "bar3", 0))


def test_mappings_and_processes_are_limited() -> None:
    guest = Guest()
    witness, _ = registered(guest, registers(guest.process().root))
    for number in range(bounds.MAPPINGS_MAX):
        witness.note(mapping(77, f"m{number}", 0x7F0000000000 + number * PAGE, PAGE))
    witness.note(mapping(77, "m0", 0x7F0000000000, PAGE))  # declared again
    with pytest.raises(ProtocolError, match="pid 77 declared more than 256 mappings"):
        witness.note(mapping(77, "one-more", 0x7E0000000000, PAGE))
    process = witness.processes[77]
    for pid in range(1000, 1000 + bounds.PROCESSES_MAX - 1):
        witness.processes[pid] = Process(f"p{pid}", pid, process.root, False)
    with pytest.raises(ProtocolError, match="more than 256 processes have registered"):
        asyncio.run(witness.register(registering(78, name="one-more"), Deadline(5.0, None)))


@pytest.mark.parametrize("event", [mapping(99), UnmappingEvent("bar", 99)])
def test_a_mapping_of_an_unknown_process(event: MappingEvent | UnmappingEvent) -> None:
    with pytest.raises(ProtocolError, match="pid 99 never registered"):
        Family().witness.note(event)


def test_a_wait_event_is_refused_as_a_plain_event() -> None:
    with pytest.raises(ProtocolError, match="needs a stop"):
        Family().witness.note(waiting())
    assert needs_registration(registering())
    assert not needs_registration(waiting())


# --- where the BAR is ----------------------------------------------------------------------------


def query_pci(regions: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """The part of QMP's query-pci that is read, of a q35 with the test device in slot 5."""
    bridge = {"bus": 0, "slot": 0, "function": 0, "regions": []}
    device = {"bus": 0, "slot": 5, "function": 0, "qdev_id": "bar", "regions": list(regions)}
    return [{"bus": 0, "devices": [bridge, device]}]


REGIONS: list[dict[str, object]] = [
    {"bar": 0, "type": "memory", "address": 0xFEBD5000, "size": 4096, "mem_type_64": False},
    {"bar": 2, "type": "memory", "address": 0x380000000, "size": 2 << 30, "mem_type_64": True},
]


def test_the_bars_from_query_pci() -> None:
    ports: dict[str, object] = {"bar": 1, "type": "io", "address": 0xC000, "size": 256}
    assert bars_from_pci(query_pci([*REGIONS, ports]), 5) == (Region("bar0", 0xFEBD5000, 4096), BAR)


@pytest.mark.parametrize(
    "regions", [REGIONS[:1], [{**REGIONS[1], "address": -1}], []], ids=["none", "asleep", "no BAR"]
)
def test_a_bar_without_an_address(regions: list[dict[str, object]]) -> None:
    assert bars_from_pci(query_pci(regions), 5) == ()


@pytest.mark.parametrize("devices", [[], None, [{"bus": 0, "devices": []}]])
def test_no_device(devices: object) -> None:
    with pytest.raises(ProtocolError, match="expected a device in slot 5"):
        bars_from_pci(devices, 5)


#: Of QEMU 11.1's nvme in D3hot, on 6.12.118: BAR 0 and BAR 2 are 64 bits wide, so that the next line of each is empty.
RESOURCE = """\
0x00000000febd0000 0x00000000febd3fff 0x0000000000140204
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000380000000000 0x000038007fffffff 0x000000000014220c
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x000000000000c000 0x000000000000c0ff 0x0000000000040101
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x00000000fea00000 0x00000000fea0ffff 0x0000000000046200
"""


def test_the_bars_of_a_sleeping_device_from_the_guest() -> None:
    assert bars_from_sysfs(RESOURCE) == (Region("bar0", 0xFEBD0000, 16384), Region("bar", 0x380000000000, 2 << 30))
    with pytest.raises(ProtocolError, match="neither QEMU nor the guest has an address for BAR 2"):
        bars_from_sysfs(RESOURCE.replace("0x0000380000000000", "0x0000000000000000"))
