"""The prefix that printk and those who show its log put in front of a message, and how to remove it."""

from __future__ import annotations

import re

#: A colour that a program left on before a kernel message, and NULs, raw or as harness.printable shows them.
_NOISE = r"(?:(?:\\x1b|\x1b)\[[0-9;]*m|\\x00|\x00)*"
_CLOCK = r"\d\d:\d\d:\d\d"
_CALLER = r"\[ *(?P<{}>[TC]\d+)\]"
PREFIX = re.compile(
    _NOISE + r"(?:"
    r"\d{1,4},\d{1,20},\d{1,20},[^,;]{1,8}(?:,caller=(?P<record>[TC]\d+))?(?:,[^;]{0,80})?;"  # /dev/kmsg, netconsole
    # journalctl -k, syslog, a fuzzer's date
    rf"|(?:(?:\w{{3}} [ \d]\d {_CLOCK}|\d{{4}}-\d\d-\d\d[T ]{_CLOCK}[.,\d]*(?:Z|[-+]\d\d:?\d\d)?) "
    r"(?:\S{1,64} kernel: )?"
    rf"|\d{{4}}/\d\d/\d\d {_CLOCK} )?"
    r"(?:[a-z]{3,8} *:[a-z]{4,6} *: )?"  # dmesg -x
    r"(?:<\d{1,3}>)?"  # syslog priority, as /proc/kmsg and earlier consoles print it
    # CONFIG_PRINTK_TIME, and how dmesg -d, -e and -T show it; CONFIG_PRINTK_CALLER
    rf"(?:\[(?: *\+?\d+\.\d+|<? *\d+\.\d+>?|\w{{3}} ?\d+ \d\d:\d\d|\w{{3}} \w{{3}} [ \d]\d {_CLOCK} \d{{4}})\]"
    rf"(?:{_CALLER.format('stamped')})? |{_CALLER.format('bare')} )?"
    r")" + _NOISE
)
"""Matches at the start of every line, empty where printk put nothing (kernel/printk/printk.c)."""

_LATE_STAMP = re.compile(rf".{{0,200}}?\[ *\d+\.\d{{6}}\](?:{_CALLER.format('late')})? ")
"""A timestamp behind other text: a login prompt, or "printk messages dropped"."""


def split(line: str) -> tuple[str, str]:
    """Split a line of a log into printk's prefix ("" if there is none) and the message."""
    match = PREFIX.match(line)
    end = match.end() if match else 0
    return line[:end], line[end:]


def message(line: str) -> str:
    """The message of a line of a kernel log: no priority, timestamp or carriage return, and no text before these."""
    return split_caller(line)[1]


def split_caller(line: str) -> tuple[str, str]:
    """Split a line of a log into who printed it and the message.

    :returns: "T12" for a task, "C0" for a CPU, "" if the kernel does not say (CONFIG_PRINTK_CALLER); the message as
        :func:`message` returns it.
    """
    line = line.rstrip("\r")
    match = PREFIX.match(line)
    if match and match.end():
        return match["stamped"] or match["bare"] or match["record"] or "", line[match.end() :]
    if late := _LATE_STAMP.match(line):
        return late["late"] or "", line[late.end() :]
    return "", line
