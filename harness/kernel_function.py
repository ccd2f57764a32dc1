"""A function of the Linux kernel, as harness/kernel_functions.py names those that decide claims. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KernelFunction:
    """A function of the Linux kernel.

    ``since`` and ``until`` are series such as "6.12": the first and the last that have it, of those in
    tests/data/kernel_functions.json. They are None if the first (the last) of all has it. Series that are not in the
    file are not known.
    """

    file: str  # the path in the source tree
    name: str
    since: str | None = None
    until: str | None = None
    elsewhere: KernelFunction | None = None  # does the same in series without it: has another name or file

    def __str__(self) -> str:
        return f"{self.file} {self.name}()"
