"""Tests for the probe of a new kernel: from its files, the output of caps.c, and the entry of one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import ClaimFailed, RunBroken
from harness.guest.job import ExitStatus
from harness.kernel import ImageKind, Kconfig, KernelImage
from harness.observe.probe import probe, probe_image
from harness.observe.run_result import RunResult
from harness.pagetable import Entry, Layout, Leaf, Level
from harness.qemu.spec import Accel
from harness.verdict import parse_ktap
from harness.verdict.capabilities import Capabilities
from harness.verdict.log.taint import Taint
from harness.verdict.log.troubles import NO_TAINT, KernelTroubles

P, W, U, A, D, NX = 1, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 63
SAVED_DIRTY = 1 << 58
KEPT, MOVED = P | U | A | D | NX, P | U | A | SAVED_DIRTY | NX
SHADOW_STACK = "# CONFIG_X86_USER_SHADOW_STACK is not set\n"
SYMBOLS = b"ffffffffc0000000 t vfio_pci_mmap_huge_fault\t[vfio_pci_core]\n"
BUILT_IN = b"ffffffff81000000 t vfio_pci_mmap_huge_fault\n"


def image(config: str | None = None) -> KernelImage:
    known = None if config is None else Kconfig(config)
    return KernelImage("./bzImage", Path("/k/bzImage"), ImageKind.BZIMAGE, "6.12.0", None, known)


class Caps:
    """Simulates caps.c, which makes a dirty page read-only and then reports what it could do."""

    def __init__(self, raw: int, said: str, layout: Layout) -> None:
        self.raw, self.said, self.layout = raw, said, layout
        self.left = False
        self.error: Exception | None = None
        self.broken: list[str] = []
        self.held: list[Caps] = []
        self.kernel = SimpleNamespace(hold_against_next=lambda: self.held.append(self))

    def __enter__(self) -> Caps:
        return self

    def __exit__(self, *_: object) -> None:
        self.left = True
        if self.error is not None:
            raise self.error

    def kernel_troubles(self) -> KernelTroubles:
        return KernelTroubles(taint=Taint.WARN if self.error is not None else NO_TAINT)

    def until(self, checkpoint: str) -> dict[str, SimpleNamespace]:
        assert checkpoint == "saved-dirty"
        leaf = Leaf(Entry(self.raw, Level.PTE, self.layout), 0x7F0000000000)
        return {"parent": SimpleNamespace(leaf={"readonly": leaf}.__getitem__)}

    def finish(self) -> RunResult:
        return RunResult(parse_ktap(self.said), ExitStatus(0, None), self.said, "")


def probed(
    raw: int = MOVED,
    *,
    config: str | None = None,
    said: str = "",
    layout: Layout = Layout.MODERN,
    symbols: bytes = b"ffffffff81000000 T _text\n",
    missing: str = "",
    error: Exception | None = None,
    broken: Sequence[str] = (),
    held: list[Caps] | None = None,
) -> Capabilities:
    """Return the capabilities of a kernel with this entry for the read-only page, under TCG."""
    caps = Caps(raw, said, layout)
    caps.error, caps.broken, caps.held = error, list(broken), [] if held is None else held

    def launch(program: str, args: tuple[str, ...], timeout_s: float) -> Caps:
        assert (program, args, timeout_s > 0) == ("caps", (), True)
        return caps

    def get(path: str) -> bytes:
        assert path == "/proc/kallsyms"
        return symbols

    ready, spec = {"missing": missing}, SimpleNamespace(accel=Accel.TCG)
    machine = SimpleNamespace(kernel=image(config), ready=ready, spec=spec, get=get, launch=launch)
    found = probe(cast(Any, machine))
    assert caps.left, "the program must run to its end"
    return found


@pytest.mark.parametrize(
    ("raw", "config", "saved_dirty"),
    [
        (MOVED, None, True),
        (MOVED, "", True),
        (MOVED, SHADOW_STACK, True),
        (KEPT, None, False),
        (KEPT, "CONFIG_VFIO=y\n", False),
    ],
)
def test_the_place_of_the_dirty_bit_of_a_read_only_page(raw: int, config: str | None, saved_dirty: bool) -> None:
    assert probed(raw, config=config).saved_dirty is saved_dirty


@pytest.mark.parametrize(
    ("raw", "config", "expected"),
    [
        (MOVED | W, None, "W=0, and either D or SAVED_DIRTY"),
        (KEPT | W, None, "W=0, and either D or SAVED_DIRTY"),
        (KEPT & ~D, None, "W=0, and either D or SAVED_DIRTY"),
        (KEPT | SAVED_DIRTY, None, "W=0, and either D or SAVED_DIRTY"),
        (KEPT, SHADOW_STACK, "W=0, D=0, SAVED_DIRTY=1"),
        (KEPT | SAVED_DIRTY, SHADOW_STACK, "W=0, D=0, SAVED_DIRTY=1"),
    ],
)
def test_a_kernel_that_keeps_no_dirty_bit_is_broken(raw: int, config: str | None, expected: str) -> None:
    with pytest.raises(ClaimFailed, match=f"made read-only by mprotect.*expected {expected}, got "):
        probed(raw, config=config)


@pytest.mark.parametrize("name", ["soft_dirty", "pagemap_scan", "guard_regions", "kvm_clock"])
@pytest.mark.parametrize(("word", "can"), [("1", True), ("0", False), ("", False), ("11", False)])
def test_the_capabilities_that_caps_reports(name: str, word: str, can: bool) -> None:
    assert getattr(probed(said=f"# value {name}={word}\nok 1 probed\n"), name) is can
    others = {"soft_dirty", "pagemap_scan", "guard_regions", "kvm_clock"} - {name}
    assert not any(getattr(probed(said=f"# value {name}=1\n"), other) for other in others)


def test_the_thp_setting_and_the_table_levels() -> None:
    assert probed(said="# value thp=madvise\n").thp == "madvise"
    assert probed().thp == ""
    assert not probed().five_level
    five = Layout(saved_dirty=True, devmap_bit=None, five_level=True)
    assert probed(layout=five).five_level


@pytest.mark.parametrize(
    ("symbols", "missing", "known"),
    [
        (BUILT_IN, "", True),
        (SYMBOLS, "", False),  # in a module: its symbols are read from the file
        (b"ffffffff81000000 T _text\n", "", False),
        (b"", "", None),  # no kallsyms
        (BUILT_IN, "vfio_pci vfio_iommu_type1 ", None),
        (BUILT_IN, "vfio_iommu_type1 ", True),
    ],
)
def test_a_handler_that_is_built_in_is_in_kallsyms(symbols: bytes, missing: str, known: bool | None) -> None:
    assert probed(symbols=symbols, missing=missing).image.huge_fault is known


def test_capabilities_known_from_the_configuration() -> None:
    config = "CONFIG_ARCH_SUPPORTS_PMD_PFNMAP=y\n# CONFIG_ARCH_SUPPORTS_PUD_PFNMAP is not set\n"
    found = probe_image(image(config))
    assert (found.pfnmap_levels, found.devmap, found.huge_fault) == (frozenset({Level.PMD}), False, None)
    both = config.replace("# ", "").replace(" is not set", "=y") + "CONFIG_ARCH_HAS_PTE_DEVMAP=y\n"
    assert probe_image(image(both)).pfnmap_levels == frozenset({Level.PMD, Level.PUD})
    assert probe_image(image(both)).devmap is True
    assert probe_image(image("")).pfnmap_levels == frozenset()
    unknown = probe_image(image(None))
    assert (unknown.pfnmap_levels, unknown.devmap) == (None, None)


def test_a_complaint_during_the_probe_counts_for_the_next_program() -> None:
    held: list[Caps] = []
    assert probed(held=held).saved_dirty
    assert held == []
    assert probed(error=RunBroken("the kernel log: BUG"), held=held).saved_dirty
    (run,) = held
    assert run.left
    with pytest.raises(RunBroken, match="SPECIAL is clear"):
        probed(error=RunBroken("SPECIAL is clear"), broken=["SPECIAL is clear"])
