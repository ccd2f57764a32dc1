"""Explain a failed assertion as a value, from its source and from the values of its names.

pytest says which values were compared. This module says whose entry it was, at which checkpoint, and which bits differ.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from harness.assertion.evaluate import Names, NotKnown, bindings
from harness.assertion.history import History, absent, neighbours
from harness.assertion.source import UNKNOWN, count_of, failed_assert, is_leaf, looked_at, part_name, reported, value_of
from harness.errors import GivenUp, NoEntry
from harness.observe.run_result import RunResult
from harness.pagetable import Bits, Entry, Leaf, PagemapWord
from harness.verdict.mismatch import MISSING, EntrySeen, Mismatch, Place, Subject
from harness.verdict.mismatch_words import word_of

_BIT_OF = {
    **{"hardware_present": Bits.P, "write": Bits.W, "user": Bits.U, "young": Bits.A, "dirty": Bits.D},
    **{"special": Bits.SPECIAL, "uffd_wp": Bits.UFFD_WP, "soft_dirty": Bits.SOFT_DIRTY, "nx": Bits.NX},
    **{"saved_dirty": Bits.SAVED_DIRTY, "protnone": Bits.PROTNONE},
}
_NONE: tuple[object, ...] = (None, (), [])


def explain(error: AssertionError, history: History, compared: tuple[Any, Any] | None = None) -> Mismatch | None:
    """Return what was expected and what was found.

    :param compared: both sides of the comparison that failed, as pytest saw them.
    :returns: None if the assertion cannot be evaluated again.
    """
    found = _told_by(error)
    failed = failed_assert(error.__traceback__) if found is None else None
    if failed is not None and not isinstance(failed[0].test, ast.Constant):
        found = _Explainer(history, compared).of(*failed)
    return history.complete(found) if found is not None else None


def _told_by(error: AssertionError) -> Mismatch | None:
    if isinstance(error, NoEntry):
        place = Place(error.checkpoint, error.process, error.mapping, error.offset)
        return _presence(False, absent(place))
    if isinstance(error, GivenUp):
        return Mismatch(Subject.HANG, error.access, "0", "10,000", before=error.checkpoint)
    return None


class _Explainer:
    """Follows the condition of an assertion down to the part that decided it."""

    def __init__(self, history: History, compared: tuple[Any, Any] | None) -> None:
        self._history = history
        self._compared = compared

    def of(self, failed: ast.Assert, names: Names) -> Mismatch:
        """Return why an assertion does not hold, with the message of the assert statement."""
        note = value_of(failed.msg, names, "") if failed.msg is not None else ""
        found = self.truth(failed.test, names, True) or self._whole(failed.test, names)
        if not isinstance(note, str) or note in ("", found.got):
            return found
        if found.subject is Subject.OTHER and found.entry is None:
            return replace(found, name=note)
        return replace(found, note=note)

    def _whole(self, test: ast.expr, names: Names) -> Mismatch:
        """Return, for a condition that cannot be taken apart, the condition and the entries that it mentions."""
        expected, got = "false" if isinstance(test, ast.UnaryOp) else "true", "false"
        if isinstance(test, ast.UnaryOp):
            test, got = test.operand, "true"
        seen = [self._history.seen(one) for one in self._mentioned(test, names)[:2]]
        entry, reference = (*seen, None, None)[:2]
        name = part_name(test)
        return Mismatch(Subject.OTHER, name, expected, got, entry, reference, frozenset({name}))

    def truth(self, node: ast.expr, names: Names, wanted: bool) -> Mismatch | None:
        """Return why a condition is not as wanted; None if it is."""
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return self.truth(operand, names, not wanted)
            case ast.BoolOp(values=values):
                return self._first_wrong(((one, names) for one in values), wanted)
            case ast.Call(func=ast.Name(id="all" | "any"), args=[ast.GeneratorExp() | ast.ListComp() as many]):
                try:
                    return self._first_wrong(((many.elt, each) for each in bindings(many, names)), wanted)
                except NotKnown:
                    return None
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return self._comparison(left, op, right, names, wanted)
        return self._plain(node, names, wanted)

    def _first_wrong(self, parts: Iterator[tuple[ast.expr, Names]], wanted: bool) -> Mismatch | None:
        for part, names in parts:
            if bool(value_of(part, names, wanted)) is not wanted:
                return self.truth(part, names, wanted)
        return None

    def _plain(self, node: ast.expr, names: Names, wanted: bool) -> Mismatch | None:
        value = value_of(node, names)
        if isinstance(node, ast.Attribute):
            owner = value_of(node.value, names)
            if isinstance(owner, Leaf | Entry) and isinstance(value, bool):
                return self._bit(owner, node.attr, wanted)
            if isinstance(owner, PagemapWord) and isinstance(value, bool):
                return self._of_entry(Subject.PART, node, names, word_of(wanted), word_of(value))
            if isinstance(owner, RunResult) and node.attr == "passed":
                after = self._history.checkpoint
                return Mismatch(Subject.OTHER, "the guest program", "passed", owner.reason, after=after)
        if value is not UNKNOWN and (is_leaf(value) or value in _NONE) and (place := looked_at(node, names)):
            return self._present(value, place)
        return None

    def _comparison(
        self, left: ast.expr, op: ast.cmpop, right: ast.expr, names: Names, wanted: bool
    ) -> Mismatch | None:
        got, expected = value_of(left, names), value_of(right, names)
        if got is UNKNOWN or expected is UNKNOWN:
            if self._compared is None:
                return None
            got, expected = self._compared
        if isinstance(op, ast.In | ast.NotIn) and isinstance(got, Bits) and isinstance(expected, Bits) and got.name:
            owners = self._mentioned(right, names)
            signed = ("-" if wanted is isinstance(op, ast.In) else "+") + got.name
            values = ("1", "0") if signed[0] == "-" else ("0", "1")
            entry = self._history.seen(owners[0]) if owners else None
            return Mismatch(Subject.BITS, got.name, *values, entry, wrong=frozenset({signed}))
        if isinstance(op, (ast.Eq | ast.Is) if wanted else (ast.NotEq | ast.IsNot)):
            return self._unequal(left, right, got, expected, names)
        sign = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}.get(type(op), "another value than")
        return self._of_entry(Subject.PART, left, names, f"{sign} {word_of(expected)}", word_of(got))

    def _unequal(self, left: ast.expr, right: ast.expr, got: Any, expected: Any, names: Names) -> Mismatch | None:
        owners = self._mentioned(left, names)
        others = self._mentioned(right, names) or owners[1:]
        if isinstance(got, Entry | Leaf) and isinstance(expected, Entry | Leaf):
            own = owners[0] if owners else got
            return self._entries(own, others[0] if others else expected, got, expected)
        if isinstance(got, Bits) and isinstance(expected, Bits):
            changed = isinstance(left, ast.BinOp) and isinstance(left.op, ast.BitXor)
            return self._bits(got, expected, owners, others, changed)
        if isinstance(left, ast.Attribute) and isinstance(got, bool) and isinstance(expected, bool):
            owner = value_of(left.value, names)
            if isinstance(owner, Leaf | Entry):
                return self._bit(owner, left.attr, expected)
        looked = all(is_leaf(side) or side in _NONE for side in (got, expected)) and not (got and expected)
        if looked and (place := looked_at(left, names)) is not None:
            return self._present(got, place)
        if isinstance(left, ast.Tuple) and isinstance(right, ast.Tuple) and len(left.elts) == len(right.elts):
            for one, other in zip(left.elts, right.elts, strict=True):
                values = value_of(one, names), value_of(other, names)
                if UNKNOWN not in values and values[0] != values[1]:
                    return self._unequal(one, other, *values, names)
        if (pair := _first_difference(got, expected)) is not None:
            return self._entries(*pair, *pair)
        return self._of_entry(Subject.PART, left, names, word_of(expected), word_of(got), others)

    def _of_entry(
        self,
        subject: Subject,
        node: ast.expr,
        names: Names,
        expected: str,
        got: str,
        others: Sequence[Leaf | Entry] = (),
    ) -> Mismatch:
        """Return a mismatch about a part of an entry or, if no entry is mentioned, about what the program reported."""
        owners = self._mentioned(node, names)
        if owners:
            entry = self._history.seen(owners[0], count_of(node, names))
            reference = self._history.seen(others[0]) if others else None
            name = part_name(node)
            if name == "pfn" and got.isdigit() and expected.isdigit():
                got, expected = hex(int(got)), hex(int(expected))
            return Mismatch(subject, name, expected, got, entry, reference, frozenset({name}))
        if key := reported(node, names):
            return self._value(key, expected, got)
        place = looked_at(node, names)
        nothing = absent(place) if place is not None else None
        return Mismatch(Subject.OTHER, part_name(node), expected, got, nothing, after=self._history.checkpoint)

    def _value(self, name: str, expected: str, got: str) -> Mismatch:
        after, before = self._history.reported(name)
        return Mismatch(Subject.VALUE, name, expected, got, after=after, before=before)

    def _bit(self, owner: Leaf | Entry, attribute: str, wanted: bool) -> Mismatch:
        entry = self._history.seen(owner)
        bit = _BIT_OF.get(attribute)
        if bit is not None:
            name, wrong = str(bit.name), {f"{'-' if wanted else '+'}{bit.name}"}
        elif attribute == "kernel_dirty":
            name = f"{entry.level}_dirty()"
            both = ("D", "SAVED_DIRTY")
            wrong = {"-D"} if wanted else {f"+{one}" for one in both if one in entry.bits}
        elif attribute == "kernel_write":
            name, wrong = f"{entry.level}_write()", {"-W" if wanted else "+W"}
        else:
            name, wrong = attribute, {attribute}
        return Mismatch(Subject.BITS, name, word_of(wanted), word_of(not wanted), entry, wrong=frozenset(wrong))

    def _bits(
        self,
        got: Bits,
        expected: Bits,
        owners: Sequence[Leaf | Entry],
        others: Sequence[Leaf | Entry],
        changed: bool,
    ) -> Mismatch:
        entry = self._history.seen(owners[0]) if owners else None
        reference = self._history.seen(others[0]) if others else None
        if changed and entry is not None:  # the test compares the bits that changed, not those that are set
            differing = (got ^ expected).names()
            wrong = {f"{'+' if name in entry.bits else '-'}{name}" for name in differing}
            return Mismatch(Subject.OTHER, "changed bits", *_words(expected, got), entry, reference, frozenset(wrong))
        added, lost = (got & ~expected).names(), (expected & ~got).names()
        signed = frozenset([f"+{name}" for name in added] + [f"-{name}" for name in lost])
        if len(signed) == 1:
            (word,) = signed
            values = ("0", "1") if added else ("1", "0")
            return Mismatch(Subject.BITS, word[1:], *values, entry, reference, signed)
        return Mismatch(Subject.BITS, "bits", *_words(expected, got), entry, reference, signed)

    def _entries(self, owner: Leaf | Entry, other: Leaf | Entry, got: Leaf | Entry, expected: Leaf | Entry) -> Mismatch:
        entry, reference = self._history.seen(owner), self._history.seen(other)
        now, then = (one.entry if isinstance(one, Leaf) else one for one in (got, expected))
        added, lost = (now.bits & ~then.bits).names(), (then.bits & ~now.bits).names()
        wrong = {f"+{name}" for name in added} | {f"-{name}" for name in lost}
        wrong |= {"level"} if now.level is not then.level else set()
        wrong |= {"pfn"} if now.leaf and then.leaf and now.pfn != then.pfn else set()
        return Mismatch(Subject.ENTRY, "", *_words(then, now), entry, reference, frozenset(wrong or {"raw"}))

    def _present(self, found: Leaf | Sequence[Leaf] | None, place: Place) -> Mismatch:
        """Return a mismatch about entries that are there but not expected, or the other way round."""
        leaves = (found,) if isinstance(found, Leaf) else tuple(found or ())
        if not leaves:
            return _presence(False, absent(place))
        return _presence(True, self._history.seen(leaves[0], neighbours(leaves)), len(leaves))

    def _mentioned(self, node: ast.AST, names: Names) -> list[Leaf | Entry]:
        """Return the entries that an expression mentions, in order."""
        if isinstance(node, ast.expr):
            value = value_of(node, names)
            if isinstance(value, Leaf) or (isinstance(value, Entry) and self._history.place_of(value)):
                return [value]
            if value is not UNKNOWN and value not in _NONE and is_leaf(value):
                return [value[0]]
        return [one for child in ast.iter_child_nodes(node) for one in self._mentioned(child, names)]


def _words(expected: object, got: object) -> tuple[str, str]:
    return word_of(expected), word_of(got)


def _presence(there: bool, entry: EntrySeen, many: int = 1) -> Mismatch:
    got = f"{many} entries" if many > 1 else "one" if there else "none"
    expected = "no entry" if there else "an entry"
    return Mismatch(Subject.PRESENCE, "", expected, got, entry, wrong=frozenset({"entry" if there else MISSING}))


def _first_difference(got: Any, expected: Any) -> tuple[Leaf | Entry, Leaf | Entry] | None:
    """Return the first pair that differs in two lists of entries of the same length."""
    if not (isinstance(got, list | tuple) and isinstance(expected, list | tuple) and len(got) == len(expected)):
        return None
    pairs = ((one, other) for one, other in zip(got, expected, strict=True) if one != other)
    pair = next(pairs, None)
    both = pair is not None and all(isinstance(one, Leaf | Entry) for one in pair)
    return pair if both else None
