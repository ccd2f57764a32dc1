"""The prefix that printk puts in front of a message, and how to remove it."""

from __future__ import annotations

import re

#: A colour that a program left on before a kernel message, and NULs, as harness.printable shows them.
_NOISE = r"(?:\\x1b\[[0-9;]*m|\\x00)*"
PREFIX = re.compile(
    _NOISE + r"(?:<\d{1,3}>)?"  # syslog priority, as /proc/kmsg and earlier consoles print it
    r"(?:\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? |\[ *[TC]\d+\] )?"  # CONFIG_PRINTK_TIME, CONFIG_PRINTK_CALLER
     + _NOISE
)
"""Matches at the start of every line, empty where printk put nothing (kernel/printk/printk.c)."""

_LATE_STAMP = re.compile(r".{0,200}?\[ *\d+\.\d{6}\](?:\[ *[TC]\d+\])? ")
"""A timestamp behind other text: a login prompt, or "printk messages dropped"."""


def split(line: str) -> tuple[str, str]:
    """Split a line of a log into printk's prefix ("" if there is none) and the message."""
    match = PREFIX.match(line)
    end = match.end() if match else 0
    return line[:end], line[end:]


def message(line: str) -> str:
    """The message of a line of a kernel log: no priority, timestamp or carriage return, and no text before these."""
    line = line.rstrip("\r")
    prefix, text = split(line)
    if not prefix and (late := _LATE_STAMP.match(line)):
        return line[late.end() :]
    return text
