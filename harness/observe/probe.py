"""Find out what a kernel can do: from its configuration, a module's symbols, and trials in the guest (caps.c)."""

from __future__ import annotations

import dataclasses
import functools

from harness.errors import ClaimFailed, RunBroken
from harness.kernel import KernelImage, has_symbol
from harness.observe.bar_bits import EARLY, probe_bar
from harness.observe.probed import ProbedMachine
from harness.pagetable import NO_BITS, Leaf
from harness.verdict.capabilities import HUGE_FAULT_SYMBOL, LEVEL_SYMBOLS, Capabilities, ImageCapabilities

SAVED_DIRTY_BIT = 58


def probe(vm: ProbedMachine) -> Capabilities:
    """Run caps.c in the guest, and read the kernel's files.

    Complaints of the kernel are held against the next program, whose claims tell more than that it complained.

    :raises MachineryError: the probe itself does not work on this kernel.
    :raises ClaimFailed: the dirty bit of a page that was made read-only is where no sound kernel keeps it.
    """
    run = vm.launch("caps", (), 30.0)
    try:
        with run:
            at = run.until("saved-dirty")
            leaf = at["parent"].leaf("readonly")
            five_level = leaf.entry.layout.five_level
            saved_dirty = _has_saved_dirty(leaf, vm.kernel)
            said = run.finish().values
    except RunBroken:
        if run.broken:
            raise
    image = probe_image(vm.kernel)
    if image.huge_fault is None and "vfio_pci" not in vm.ready["missing"].split():
        symbols = vm.get("/proc/kallsyms")
        here = f" {HUGE_FAULT_SYMBOL}\n".encode() in symbols if symbols else None
        image = dataclasses.replace(image, huge_fault=here)
    early = EARLY[vm.spec.accel]
    found = Capabilities(
        image=image,
        saved_dirty=saved_dirty,
        soft_dirty=said.get("soft_dirty") == "1",
        pagemap_scan=said.get("pagemap_scan") == "1",
        guard_regions=said.get("guard_regions") == "1",
        thp=said.get("thp", ""),
        five_level=five_level,
        kvm_clock=said.get("kvm_clock") == "1",
        early=early,
        bar_misses=(probe_bar(vm) or NO_BITS) if early else NO_BITS,  # TCG always sets A and D
    )
    if run.kernel_troubles().found:
        run.kernel.hold_against_next()
    return found


def _has_saved_dirty(leaf: Leaf, kernel: KernelImage) -> bool:
    """Return whether the dirty bit of a page that was made read-only moved to SAVED_DIRTY.

    The symbol X86_USER_SHADOW_STACK came with SAVED_DIRTY (6.6), so a configuration that knows it is a second source.

    :raises ClaimFailed: the page is still writable, lost its dirty bit, or kept D on a kernel that has SAVED_DIRTY.
    """
    moved = not leaf.dirty and bool(leaf.raw >> SAVED_DIRTY_BIT & 1)
    stayed = leaf.dirty and not leaf.raw >> SAVED_DIRTY_BIT & 1
    known = kernel.config is not None and "CONFIG_X86_USER_SHADOW_STACK" in kernel.config.text
    if leaf.write or not (moved or stayed) or (stayed and known):
        expected = "W=0, D=0, SAVED_DIRTY=1" if known else "W=0, and either D or SAVED_DIRTY"
        raise ClaimFailed(f"a dirty anonymous page made read-only by mprotect(): expected {expected}, got {leaf}")
    return moved


@functools.cache
def probe_image(kernel: KernelImage) -> ImageCapabilities:
    """Return what the kernel's configuration and its vfio module show, without a boot."""
    config = kernel.config
    levels = None
    if config is not None:
        levels = frozenset(level for level, symbol in LEVEL_SYMBOLS.items() if config.is_set(symbol))
    return ImageCapabilities(
        huge_fault=has_symbol(kernel, "vfio_pci_core", HUGE_FAULT_SYMBOL),
        pfnmap_levels=levels,
        devmap=None if config is None else config.is_set("ARCH_HAS_PTE_DEVMAP"),
    )
