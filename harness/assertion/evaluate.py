"""Evaluate a part of a failed assertion once more, if that has no effect.

Only names, constants, operators, comprehensions, and the attributes and methods of immutable values are evaluated: the
frozen dataclasses of this package, and Python's own. Any other call, such as ``guest.until(...)`` or a function of the
test, is not repeated.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import operator
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType, ModuleType
from typing import Any

from harness.observe.run import GuestRun

Names = Mapping[str, Any]

_FUNCTIONS: Names = {
    one.__name__: one for one in (all, any, bool, dict, int, len, list, max, min, set, sorted, str, sum, tuple)
}
_VIEWS = frozenset({"get", "items", "keys", "values"})
_OPERATORS: Mapping[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.BitXor: operator.xor,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
    ast.USub: operator.neg,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}


class NotKnown(Exception):
    """The value cannot be computed without a call that may have an effect."""


def names_in(frame: FrameType) -> Names:
    """Return the values of the names in a frame."""
    return ChainMap(dict(frame.f_locals), frame.f_globals, dict(_FUNCTIONS))


def evaluate(node: ast.expr, names: Names) -> Any:
    """Return the value of an expression.

    :raises NotKnown: it cannot be computed without an effect, or it raises an error.
    """
    try:
        return _evaluate(node, names)
    except NotKnown:
        raise
    except Exception as error:
        raise NotKnown(ast.unparse(node)) from error


def bindings(comprehension: ast.ListComp | ast.SetComp | ast.GeneratorExp, names: Names) -> Iterator[Names]:
    """Yield the names in each iteration of a comprehension.

    :raises NotKnown: what it iterates over cannot be computed without an effect.
    """
    yield from _bindings(comprehension.generators, names)


def is_constant(value: object) -> bool:
    """Return whether a value is an immutable one of this package."""
    kind = type(value)
    frozen = dataclasses.is_dataclass(kind) and getattr(kind, "__dataclass_params__").frozen  # noqa: B009
    return kind.__module__.startswith("harness.") and (frozen or isinstance(value, enum.Enum))


def _evaluate(node: ast.expr, names: Names) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names[name]
        case ast.Attribute(value=owner, attr=name):
            return _attribute(_evaluate(owner, names), name)
        case ast.Subscript(value=owner, slice=index):
            return _item(_evaluate(owner, names), _evaluate(index, names))
        case ast.Call():
            return _call(node, names)
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_evaluate(operand, names))
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, names), _evaluate(right, names))
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            return _OPERATORS[type(op)](_evaluate(left, names), _evaluate(right, names))
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_evaluate(one, names) for one in values)
        case ast.BoolOp(values=values):
            return any(_evaluate(one, names) for one in values)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return _evaluate(body if _evaluate(test, names) else orelse, names)
        case ast.Tuple(elts=elements):
            return tuple(_evaluate(one, names) for one in elements)
        case ast.List(elts=elements):
            return [_evaluate(one, names) for one in elements]
        case ast.Set(elts=elements):
            return {_evaluate(one, names) for one in elements}
        case ast.SetComp(elt=element):
            return {_evaluate(element, each) for each in bindings(node, names)}
        case ast.ListComp(elt=element) | ast.GeneratorExp(elt=element):
            return [_evaluate(element, each) for each in bindings(node, names)]
        case ast.JoinedStr(values=parts):
            return "".join(str(_evaluate(part, names)) for part in parts)
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return format(_evaluate(value, names))
    raise NotKnown(ast.unparse(node))


def _attribute(owner: Any, name: str) -> Any:
    if isinstance(owner, GuestRun) and name == "result" and owner.ended is not None:
        return owner.ended
    if is_constant(owner) or isinstance(owner, ModuleType | enum.EnumMeta):
        return getattr(owner, name)
    raise NotKnown(name)


def _item(owner: Any, index: Any) -> Any:
    if is_constant(owner) or isinstance(owner, dict | list | tuple | str | Mapping):
        return owner[index]
    raise NotKnown(str(index))


def _call(node: ast.Call, names: Names) -> Any:
    if any(isinstance(one, ast.Starred) for one in node.args) or any(one.arg is None for one in node.keywords):
        raise NotKnown(ast.unparse(node))
    match node.func:
        case ast.Name(id=name) if names.get(name) is _FUNCTIONS.get(name, NotKnown):
            function = _FUNCTIONS[name]
        case ast.Attribute(value=value, attr=name):
            owner = _evaluate(value, names)
            pure = is_constant(owner) or isinstance(owner, str | tuple | int | frozenset)
            if not pure and not (isinstance(owner, Mapping) and name in _VIEWS):
                raise NotKnown(name)
            function = getattr(owner, name)
        case _:
            raise NotKnown(ast.unparse(node))
    arguments = [_evaluate(one, names) for one in node.args]
    return function(*arguments, **{str(one.arg): _evaluate(one.value, names) for one in node.keywords})


def _bindings(generators: list[ast.comprehension], names: Names) -> Iterator[Names]:
    if not generators:
        yield names
        return
    first, *rest = generators
    for one in evaluate(first.iter, names):
        bound = ChainMap(_bound(first.target, one), names)  # type: ignore[arg-type]  # nothing is written there
        if all(evaluate(test, bound) for test in first.ifs):
            yield from _bindings(rest, bound)


def _bound(target: ast.expr, value: Any) -> dict[str, Any]:
    match target:
        case ast.Name(id=name):
            return {name: value}
        case ast.Tuple(elts=targets):
            return dict(_each_bound(targets, value))
    raise NotKnown(ast.unparse(target))


def _each_bound(targets: Iterable[ast.expr], values: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for target, value in zip(targets, values, strict=True):
        yield from _bound(target, value).items()
