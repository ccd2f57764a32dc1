"""The title of a complaint, in the form that syzkaller's dashboard has made the field's own.

One bug has one title, on any machine and in any process: "KASAN: slab-use-after-free Read in FUNC",
"WARNING in FUNC", "INFO: rcu detected stall in FUNC". So a title has no addresses, no numbers and no line numbers.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.verdict.log.complaint_kinds import Rule
from harness.verdict.log.frames import Stacks, guilty, stacks

MAX_TITLE_CHARS = 120
UNKNOWN = "corrupted"
"""Stands in a title for a function that the log does not tell."""

_VARYING = (
    (re.compile(r"(?<![A-Za-z0-9])(?:0x)?[0-9a-f]{6,}(?![A-Za-z0-9_])"), "ADDR"),
    (re.compile(r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}"), "IP"),
    (re.compile(r"(\.\w{1,8})(?::\d+)+"), r"\1:LINE"),
    (re.compile(r"([A-Za-z][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+"), r"\1"),
    (re.compile(r"CPU#\d+"), "CPU"),
    (re.compile(r"(?<!\w)\d+(?!\w)"), "NUM"),
    (re.compile(r"\d{7,}"), "NUM"),
)


class Damage(enum.Enum):
    """Why a complaint is corrupted; the value says it in words."""

    NO_FUNCTION = "the log does not tell which function it is about"
    NO_DETAIL = "a line that every report of its kind has is missing"
    NO_STACK = "it has no stack"
    CUT = "a stack has no frames"
    MIXED = "other messages stand between its lines"


@dataclass(frozen=True)
class Reading:
    """What the text of a complaint says."""

    title: str
    frame: str
    """The guilty function; "" if the title names none or the log does not tell."""
    damage: Damage | None
    """None for a whole complaint."""


def read(rule: Rule, messages: Sequence[str]) -> Reading:
    """Read the text of a complaint.

    :param messages: its lines from the first line proper on, without printk's prefix.
    """
    text = messages[0]
    fields = {name: value or "" for name, value in _groups(rule.first.compiled, text).items()}
    damage = None
    if rule.detail is not None:
        found = next((match for line in messages[1:] if (match := rule.detail.search(line))), None)
        fields = {
            **dict.fromkeys(rule.detail.compiled.groupindex, ""),
            **fields,
            **(found.groupdict("") if found else {}),
        }
        damage = None if found else Damage.NO_DETAIL
    seen = stacks(messages)
    if rule.sources:
        fields["frame"] = guilty(rule, fields.get("func", ""), seen)
    frame = fields.get("frame", "")
    if "{frame}" in rule.title and not frame:
        fields["frame"], damage = UNKNOWN, Damage.NO_FUNCTION
    title = rule.title.format_map(fields) if rule.title else text
    return Reading(canonical(title), canonical(frame), damage or _damage(rule, seen, messages))


def canonical(title: str) -> str:
    """The title without what differs from machine to machine."""
    title = title[: 4 * MAX_TITLE_CHARS]
    for varying, word in _VARYING:
        title = varying.sub(word, title)
    return " ".join("".join(char if " " <= char < "\x7f" else " " for char in title[:MAX_TITLE_CHARS]).split())


def _groups(pattern: re.Pattern[str], text: str) -> dict[str, str | None]:
    match = pattern.match(text)
    return match.groupdict() if match else dict.fromkeys(pattern.groupindex)


_NO_STACK = re.compile(r"\(stack is not available\)")
_FOREIGN = re.compile(
    r" *(?:\[<[0-9a-f]+>\] )?should_fail(?:slab)?(?:\.[\w.]+)?\+0x|FAULT_INJECTION: forcing a failure"
)


def _damage(rule: Rule, seen: Stacks, messages: Sequence[str]) -> Damage | None:
    if rule.end is None or not rule.title:
        return None
    if any(_FOREIGN.match(line) for line in messages[1:]):
        return Damage.MIXED
    if rule.sources and not any(stack.frames for stack in seen.all):
        return Damage.NO_STACK
    empty = [one for one in seen.all[1:] if one.heading == "call" and not one.frames]
    return (
        Damage.CUT if any(not _NO_STACK.search("".join(messages[one.line : one.line + 3])) for one in empty) else None
    )
