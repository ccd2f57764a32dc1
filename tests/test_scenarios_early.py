"""Checks that every claim that A is clear has ``clear=Bits.A``: under KVM a CPU may set A before any access."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SCENARIOS = Path(__file__).resolve().parents[1] / "guest_tests"


def unmarked(source: str) -> list[int]:
    """Return the lines with ``not ...young`` in a claim whose ``clear=`` does not name A."""
    return sorted(set(_unmarked(ast.parse(source), False)))


def _unmarked(node: ast.AST, marked: bool) -> Iterator[int]:
    if isinstance(node, ast.With):
        words = [ast.unparse(keyword) for item in node.items for keyword in _keywords(item.context_expr)]
        marked = marked or any(word.startswith("clear=") and "Bits.A" in word for word in words)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not) and not marked and ".young" in ast.unparse(node):
        yield node.lineno
    for child in ast.iter_child_nodes(node):
        yield from _unmarked(child, marked)


def _keywords(call: ast.expr) -> list[ast.keyword]:
    return call.keywords if isinstance(call, ast.Call) else []


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("test_*.py")), ids=lambda path: path.stem)
def test_every_claim_about_a_clear_accessed_bit_is_marked(path: Path) -> None:
    assert unmarked(path.read_text()) == [], "write `with claim(..., clear=Bits.A)`, because KVM may set A early"


def test_the_check_itself() -> None:
    plain = 'with claim("old", "f()"):\n    assert not child.young\n'
    assert unmarked(plain) == [2]
    assert unmarked(plain.replace('"f()"', '"f()", clear=Bits.A')) == []
    assert unmarked(plain.replace("not child.young", "not any(leaf.young for leaf in leaves)")) == [2]
    assert unmarked(plain.replace("not ", "")) == []
