"""Where the BARs of the device under test are, from QEMU or from the guest's kernel."""

from __future__ import annotations

from harness.errors import ProtocolError
from harness.guest.protocol import TESTED_BAR, bar_name
from harness.pagetable import Region

_BARS = 6
_IORESOURCE_MEM = 0x200  # include/linux/ioport.h


def bars_from_pci(devices: object, slot: int) -> tuple[Region, ...]:
    """Return a device's memory BARs from QMP's ``query-pci``: BAR 2 is "bar", BAR 0 is "bar0".

    :returns: empty if BAR 2 has no address now: the device's memory is off, or (QEMU 10 and later) it is in D3hot.
    :raises ProtocolError: there is no such device.
    """
    there = [
        device
        for bus in (devices if isinstance(devices, list) else [])
        for device in bus["devices"]
        if device["slot"] == slot
    ]
    if not there:
        raise ProtocolError(f"QEMU's query-pci: expected a device in slot {slot}")
    found = [
        Region(bar_name(int(bar["bar"])), int(bar["address"]), int(bar["size"]))
        for device in there
        for bar in device["regions"]
        if bar["type"] == "memory" and bar["address"] >= 0
    ]
    return tuple(found) if bar_name(TESTED_BAR) in (bar.name for bar in found) else ()


def bars_from_sysfs(resource: str) -> tuple[Region, ...]:
    """Return them from the guest's ``/sys/bus/pci/devices/BDF/resource``, which is right in any state of the device.

    One line per resource, the six BARs first: first byte, last byte, flags (drivers/pci/pci-sysfs.c resource_show()).

    :raises ProtocolError: BAR 2 is not memory with an address.
    """
    found = []
    for number, line in enumerate(resource.splitlines()[:_BARS]):
        start, last, flags = (int(word, 16) for word in line.split())
        if flags & _IORESOURCE_MEM and start:
            found.append(Region(bar_name(number), start, last - start + 1))
    if bar_name(TESTED_BAR) not in (bar.name for bar in found):
        raise ProtocolError(
            f"neither QEMU nor the guest has an address for BAR {TESTED_BAR}: the guest's sysfs shows {resource!r}"
        )
    return tuple(found)
