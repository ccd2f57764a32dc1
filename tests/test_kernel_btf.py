"""Tests for reading BTF: offsets of members, also in anonymous structs, unions and typedefs; garbage is refused."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.introspect.tasks import TaskOffsets
from harness.kernel.btf import Btf, BtfError, BtfKind


@dataclass
class Builder:
    """Builds a .BTF section one type at a time. Ids start with 1."""

    types: bytearray = field(default_factory=bytearray)
    names: bytearray = field(default_factory=lambda: bytearray(b"\0"))
    count: int = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        at = len(self.names)
        self.names += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str, size_or_type: int, vlen: int = 0, flag: bool = False, tail: bytes = b"") -> int:
        info = kind << 24 | vlen | flag << 31
        self.types += struct.pack("<III", self.name(name), info, size_or_type) + tail
        self.count += 1
        return self.count

    def integer(self, name: str, size_bytes: int) -> int:
        return self.add(1, name, size_bytes, tail=struct.pack("<I", size_bytes * 8))

    def composite(self, kind: int, name: str, members: list[tuple[str, int, int]], flag: bool = False) -> int:
        tail = b"".join(struct.pack("<III", self.name(one), type_id, offset) for one, type_id, offset in members)
        return self.add(kind, name, 64, len(members), flag, tail)

    def data(self, version: int = 1, header: int = 24) -> bytes:
        lengths = (0, len(self.types), len(self.types), len(self.names))
        fields = struct.pack("<HBBI4I", 0xEB9F, version, 0, header, *lengths)
        return fields + bytes(header - 24) + bytes(self.types + self.names)


def sample() -> Builder:
    """struct inner { long a; long b; }; typedef struct inner inner_t; struct outer as in test_offsets()."""
    build = Builder()
    long = build.integer("long int", 8)
    inner = build.composite(4, "inner", [("a", long, 0), ("b", long, 64)])
    typedef = build.add(8, "inner_t", build.add(10, "", inner))
    build.add(2, "", 0)  # void *
    build.add(3, "", 0, tail=struct.pack("<III", long, long, 4))
    build.add(6, "colour", 4, 2, tail=struct.pack("<IiIi", build.name("RED"), 0, build.name("BLUE"), -1))
    build.add(19, "wide", 8, 1, tail=struct.pack("<III", build.name("FAR"), 1, 1))
    build.add(13, "", long, 1, tail=struct.pack("<II", build.name("x"), long))
    build.add(14, "counter", long, tail=struct.pack("<I", 1))
    build.add(15, ".data", 8, 1, tail=struct.pack("<III", 9, 0, 8))
    build.add(17, "tag", inner, tail=struct.pack("<i", -1))
    build.add(16, "double", 8)
    union = build.composite(5, "", [("raw", long, 0), ("as_inner", typedef, 0)])
    deep = build.composite(4, "", [("first", long, 0), ("", union, 128)])
    build.composite(4, "outer", [("head", long, 0), ("", deep, 64), ("last", typedef, 512)])
    build.composite(4, "packed", [("low", long, 3 << 24 | 0), ("high", long, 5 << 24 | 3), ("whole", long, 64)], True)
    build.composite(4, "odd", [("bit", long, 4)])
    return build


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("inner.b", 8),
        ("outer.head", 0),
        ("outer.first", 8),
        ("outer.raw", 24),
        ("outer.as_inner.b", 32),
        ("outer.last.a", 64),
        ("outer.last.b", 72),
        ("packed.whole", 8),
    ],
)
def test_offsets(path: str, offset: int) -> None:
    assert Btf(sample().data()).offset(path) == offset


def test_a_module_goes_on_counting_types_and_names() -> None:
    kernel = sample()
    module = Builder(count=kernel.count)
    first_name = len(kernel.names) - 1  # its names have their empty one as well, which no type of it uses

    def composite(name: str, members: list[tuple[str, int, int]]) -> int:
        tail = b"".join(
            struct.pack("<III", first_name + module.name(one) + 1, type_id, offset) for one, type_id, offset in members
        )
        at = first_name + module.name(name) + 1
        module.types += struct.pack("<III", at, 4 << 24 | len(members), 64) + tail
        module.count += 1
        return module.count

    own = composite("vcpu", [("raw", 1, 0), ("from_kernel", 2, 64)])
    composite("vm", [("pad", 1, 0), ("vcpu", own, 128)])
    btf = Btf(module.data(), Btf(kernel.data()))
    assert btf.offset("vm.vcpu.from_kernel.b") == 16 + 8 + 8
    assert btf.offset("outer.last.b") == 72
    assert len(btf) == module.count + 1
    with pytest.raises(BtfError, match="no struct/union vcpu"):
        Btf(kernel.data()).offset("vcpu.raw")


def test_a_longer_header_is_skipped() -> None:
    assert Btf(sample().data(header=32)).offset("inner.b") == 8


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("inner.c", "no member inner.c"),
        ("nothing.a", "no struct/union nothing"),
        ("inne.a", "no struct/union inne"),
        ("outer.head.a", "there is no 'a'"),
        ("packed.high", "bitfield"),
        ("odd.bit", "bitfield"),
        ("counter.a", "no struct/union counter"),
    ],
)
def test_a_missing_struct_or_member_is_named(path: str, words: str) -> None:
    with pytest.raises(BtfError, match=words):
        Btf(sample().data()).offset(path)


def test_a_struct_that_contains_itself_is_refused() -> None:
    build = Builder()
    build.composite(4, "loop", [("", 1, 0)])
    with pytest.raises(BtfError, match="contains itself"):
        Btf(build.data()).offset("loop.a")
    build = Builder()
    build.add(8, "again", 1)
    build.composite(4, "outer", [("x", 1, 0)])
    with pytest.raises(BtfError, match="own typedef"):
        Btf(build.data()).offset("outer.x.y")


def test_an_unknown_kind_is_named() -> None:
    build = sample()
    build.add(25, "new", 0)
    with pytest.raises(BtfError, match="kind 25"):
        Btf(build.data())


def test_types_by_id() -> None:
    btf = Btf(sample().data())
    assert btf.record(btf.find("counter", BtfKind.VAR)).size_or_type == 1
    colours = btf.record(btf.find("colour", BtfKind.ENUM))
    assert [btf.name(btf.words(colours, 2, index)[0]) for index in range(colours.count)] == ["RED", "BLUE"]
    for type_id in (0, len(btf)):
        with pytest.raises(BtfError, match="no BTF type"):
            btf.record(type_id)


@pytest.mark.parametrize("cut", [0, 10, 23, 24, 60, 300])
def test_truncated_btf_is_refused(cut: int) -> None:
    with pytest.raises(BtfError, match=r"BTF .*(is truncated|header of 24 bytes)"):
        Btf(sample().data()[:cut])


@pytest.mark.parametrize("data", [b"\x7fELF" + bytes(60), bytes(64), Builder().data(version=2)])
def test_malformed_btf_is_refused(data: bytes) -> None:
    with pytest.raises(BtfError, match="no BTF: magic"):
        Btf(data)


@settings(max_examples=120)
@given(st.data())
def test_garbage_is_an_error_and_nothing_else(data: st.DataObject) -> None:
    """With bytes changed at random, the reader returns an offset or raises BtfError, and always ends."""
    whole = bytearray(sample().data())
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        btf = Btf(bytes(whole))
        for path in ("outer.as_inner.b", "inner.a", "packed.high"):
            assert btf.offset(path) >= 0
    except BtfError:
        pass


def test_task_offsets_ask_for_the_right_structs() -> None:
    asked: list[str] = []

    def offset(path: str) -> int:
        asked.append(path)
        return len(asked)

    found = TaskOffsets.of(offset)
    assert {"task_struct.mm", "mm_struct.pgd", "signal_struct.thread_head", "task_struct.thread_node"} < set(asked)
    assert asked[found.pgd - 1] == "mm_struct.pgd"
