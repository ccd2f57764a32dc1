"""The source of a test: the statement that failed, and what its expressions are about."""

from __future__ import annotations

import ast
import linecache
import sysconfig
import traceback
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from harness.assertion.evaluate import Names, NotKnown, evaluate, names_in
from harness.assertion.history import neighbours
from harness.observe.snapshot import ProcessView
from harness.pagetable import Leaf
from harness.verdict.mismatch import Place

_HARNESS = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
_PART = {"cache": "PAT index"}
_TEXT_MAX = 100
_LOOKS = ("leaf", "find_leaf", "leaves")


class _Unknown:
    """Stands for a value that cannot be computed."""


UNKNOWN = _Unknown()


def value_of(node: ast.expr, names: Names, default: Any = UNKNOWN) -> Any:
    """Return the value of an expression, or the default if it cannot be computed."""
    try:
        return evaluate(node, names)
    except NotKnown:
        return default


def is_leaf(value: Any) -> bool:
    """Return whether a value is a leaf, or several leaves."""
    return isinstance(value, Leaf) or (
        isinstance(value, tuple | list) and bool(value) and all(isinstance(one, Leaf) for one in value)
    )


def failed_assert(trace: TracebackType | None) -> tuple[ast.Assert, Names] | None:
    """Return the assert statement at the end of a traceback, and the values of its names."""
    last = list(traceback.walk_tb(trace))[-1:]
    for frame, line in last:
        for node in ast.walk(_tree(frame)):
            if isinstance(node, ast.Assert) and node.lineno <= line <= (node.end_lineno or node.lineno):
                return node, names_in(frame)
    return None


def next_claim(error: BaseException, claims: object) -> tuple[str, str] | None:
    """Return the claim after the statement at which an error ended a test: its name, and what decides it.

    :param claims: the test's value of the fixture ``claim``.
    """
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if is_ours(frame.f_code.co_filename):
            continue
        names, function = names_in(frame), _function_at(_tree(frame), line)
        blocks = [node for node in ast.walk(function) if isinstance(node, ast.With) and node.lineno > line]
        for call in (node.items[0].context_expr for node in sorted(blocks, key=lambda node: node.lineno)):
            if isinstance(call, ast.Call) and call.args and value_of(call.func, names) is claims:
                named = [one.value for one in call.keywords if one.arg == "by"]
                by = str(value_of((call.args[1:2] or named)[0], names, "")) if call.args[1:] or named else ""
                return str(value_of(call.args[0], names, ast.unparse(call.args[0]))), by
    return None


def _function_at(tree: ast.Module, line: int) -> ast.AST:
    """Return the innermost function that contains a line."""
    functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)]
    around: list[ast.AST] = [one for one in functions if one.lineno <= line <= (one.end_lineno or line)]
    return (around or [tree])[-1]


def _tree(frame: FrameType) -> ast.Module:
    """Return the source of a frame's file; empty if it cannot be read."""
    linecache.checkcache(frame.f_code.co_filename)
    try:
        return ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    except SyntaxError:
        return ast.Module([], [])


def is_ours(filename: str) -> bool:
    """Return whether a source file is part of hugepfn."""
    return _HARNESS in Path(filename).parents


def is_library(filename: str) -> bool:
    """Return whether a source file is part of Python or of an installed package."""
    return filename.startswith(_LIBRARIES)


def source_of(error: BaseException) -> str:
    """Return the test's statement that failed, with file and line; "" if the error does not come from a test."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not is_ours(frame.filename) and not is_library(frame.filename)]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}: {own[-1].line}" if own else ""


def looked_at(node: ast.expr, names: Names) -> Place | None:
    """Return the place at which ``process.leaf(mapping, offset)`` and similar calls look."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in _LOOKS:
            view = value_of(call.func.value, names)
            arguments = [value_of(one, names) for one in (*call.args, *(one.value for one in call.keywords))]
            if isinstance(view, ProcessView) and arguments and UNKNOWN not in arguments:
                return Place(view.checkpoint, view.name, *(str(arguments[0]), int((*arguments, 0)[1])))
    return None


def count_of(node: ast.expr, names: Names) -> int:
    """Return the number of equal neighbours in an expression about several leaves."""
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        leaves = value_of(node.generators[0].iter, names)
        return neighbours(leaves) if leaves is not UNKNOWN and is_leaf(leaves) else 1
    return 1


def part_name(node: ast.expr) -> str:
    """Return the name of what is compared: ``level`` for ``read.level`` and ``[leaf.level for leaf in leaves]``."""
    match node:
        case ast.Attribute(attr=name):
            return _PART.get(name, name)
        case ast.ListComp(elt=ast.Attribute(attr=name)) | ast.SetComp(elt=ast.Attribute(attr=name)):
            return _PART.get(name, name)
    text = ast.unparse(node)
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}..."


def reported(node: ast.expr, names: Names) -> str:
    """Return the name of the program's value that an expression reads; "" if it reads none."""
    for part in ast.walk(node):
        match part:
            case ast.Call(func=ast.Attribute(attr="faults"), args=[name, *_]):
                return str(value_of(name, names, ""))
            case ast.Subscript(value=owner, slice=index):
                values, key = value_of(owner, names), value_of(index, names)
                if isinstance(values, dict) and isinstance(key, str):
                    return key
    return ""
