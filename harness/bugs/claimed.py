"""Reads from a scenario's test which program it runs, what it claims, and which of it the program's own values tell.

The test is not run: its statements are followed as far as they depend on nothing but the test's parameters and its
module. What a machine would decide is not known, so neither branch of such a condition is followed, and a value that is
computed from what a machine shows stays unknown. So a value is expected only where the test expects it always.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import itertools
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError

_CALLS_MAX = 8  # helpers that call helpers


@dataclass
class Claimed:
    """What a test says about one run of a guest program."""

    program: str = ""
    arguments: tuple[str, ...] = ()
    claims: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    """What the program has to report, by name."""


class _UnknownError(Exception):
    """The value depends on a machine."""


class _Returned(Exception):
    """The function ends here."""


class _NotReached(Exception):
    """What follows may not be reached, or is about another run."""


class _Reported:
    """A value that the program reports, in the test. It is known only where the test asserts what it is."""

    def __init__(self, name: str, seen: dict[str, str] | None) -> None:
        self._name, self._seen = name, seen

    def __eq__(self, other: object) -> bool:
        if self._seen is None or not isinstance(other, str | int):
            raise _UnknownError
        self._seen[self._name] = str(other)
        return True

    def __bool__(self) -> bool:
        raise _UnknownError

    __hash__ = None  # type: ignore[assignment]
    __str__ = __repr__ = __format__ = __bool__  # type: ignore[assignment]


class _Values:
    def __init__(self, guest: _Guest) -> None:
        self._guest = guest

    def __getitem__(self, name: str) -> _Reported:
        return _Reported(name, self._guest.asserted)


class _Guest:
    """Stands in for harness.observe.run.GuestRun, and for its result."""

    def __init__(self) -> None:
        self.result = self
        self.values = _Values(self)
        self.asserted: dict[str, str] | None = None
        """Receives what an assertion expects, while one is read."""

    def faults(self, name: str, before: str) -> _Reported:  # noqa: ARG002 - RunResult's signature
        return _Reported(name, self.asserted)


class _Machine:
    """Stands in for a machine: all that is known of it is that it can have a leaf of each level."""

    @property
    def caps(self) -> _Machine:
        return self

    def why_not(self, level: object) -> str:  # noqa: ARG002 - Capabilities' signature
        return ""


def claimed_by(test: Callable[..., object], parameters: Mapping[str, object]) -> Claimed:
    """Return what a test says.

    :param parameters: its arguments that are no fixtures: the level, and what it is parametrized with.
    :raises UsageError: the test runs no program, or which one depends on the machine.
    """
    reader = _TestReader()
    with contextlib.suppress(_NotReached, _Returned):
        reader.read(_body(test), _Scope({"vm": _Machine(), **parameters}, getattr(test, "__globals__", {})))
    if not reader.found.program:
        raise UsageError(
            f"no C file can be made of {getattr(test, '__name__', 'this test')}: it runs no program, or the machine "
            "decides with which arguments"
        )
    return reader.found


@functools.cache
def _body(function: Callable[..., object]) -> Sequence[ast.stmt]:
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function)))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    return tree.body


@dataclass
class _Scope:
    """The names that are known at some place of a function."""

    names: dict[str, object]
    module: Mapping[str, object]

    def value(self, node: ast.expr) -> Any:
        """Evaluate an expression.

        :raises _UnknownError: it depends on a machine.
        """
        try:
            tree = ast.fix_missing_locations(ast.Expression(node))
            return eval(compile(tree, "<test>", "eval"), {**self.module, **self.names})
        except Exception as error:
            raise _UnknownError from error

    def bind(self, target: ast.expr, value: object) -> None:
        """Assign to a name or to a tuple of names."""
        if isinstance(target, ast.Name):
            self.names[target.id] = value
        elif isinstance(target, ast.Tuple):
            try:
                parts = list(value)  # type: ignore[call-overload]
            except Exception:
                self.forget(target)
                return
            for one, part in zip(target.elts, parts, strict=False):
                self.bind(one, part)
        else:
            self.forget(target)

    def forget(self, *nodes: ast.AST) -> None:
        """Forget every name that is assigned to in these nodes: what it has is not known."""
        for node in itertools.chain.from_iterable(map(ast.walk, nodes)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self.names[node.id] = _UnknownValue()


class _UnknownValue:
    """A name of which nothing is known: whatever is done with it raises."""

    def __getattribute__(self, name: str) -> Any:
        raise _UnknownError

    def __bool__(self) -> bool:
        raise _UnknownError

    def __eq__(self, other: object) -> bool:
        raise _UnknownError

    def __iter__(self) -> Any:
        raise _UnknownError

    def __str__(self) -> str:
        raise _UnknownError

    def __format__(self, spec: str) -> str:
        raise _UnknownError

    __hash__ = None  # type: ignore[assignment]
    __repr__ = __str__


class _TestReader:
    """Follows the statements of a test and of the helpers that it calls."""

    def __init__(self) -> None:
        self.found = Claimed()
        self._guest = _Guest()
        self._calls = 0

    def read(self, statements: Iterable[ast.stmt], scope: _Scope) -> None:
        """Follow statements in order.

        :raises _NotReached: what comes next may not be reached.
        """
        for one in statements:
            match one:
                case ast.With():
                    self._with(one, scope)
                case ast.Assert():
                    self._assert(one.test, scope)
                case ast.If():
                    self._if(one, scope)
                case ast.For():
                    self._for(one, scope)
                case ast.Assign(targets=[target]):
                    self._assign(target, one.value, scope)
                case ast.Expr(value=ast.Call() as call):
                    self._call(call, scope)
                case ast.Return(value=value):
                    if isinstance(value, ast.Call):
                        self._call(value, scope)
                    raise _Returned
                case ast.Raise() | ast.Continue() | ast.Break():
                    raise _NotReached
                case _:
                    scope.forget(one)

    def _with(self, node: ast.With, scope: _Scope) -> None:
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "vm.run":
                self._run(call, scope)
                if item.optional_vars is not None:
                    scope.bind(item.optional_vars, self._guest)
            elif isinstance(call, ast.Call) and ast.unparse(call.func) == "claim":
                self._claim(call, scope)
            elif item.optional_vars is not None:
                scope.forget(item.optional_vars)
        self.read(node.body, scope)

    def _run(self, call: ast.Call, scope: _Scope) -> None:
        if self.found.program:
            raise _NotReached  # the second run is another one
        try:
            program, *arguments = scope.value(ast.Tuple(call.args, ast.Load()))
        except _UnknownError:
            raise _NotReached from None
        self.found.program, self.found.arguments = str(program), tuple(map(str, arguments))

    def _claim(self, call: ast.Call, scope: _Scope) -> None:
        try:
            self.found.claims.append(str(scope.value(call.args[0])))
        except _UnknownError:
            self.found.claims.append(ast.unparse(call.args[0]))

    def _assert(self, test: ast.expr, scope: _Scope) -> None:
        """Only `assert A == B` says what a value has to be; A or B may be a tuple or a list of values."""
        if not (isinstance(test, ast.Compare) and [*map(type, test.ops)] == [ast.Eq]):
            return
        self._guest.asserted = {}
        with contextlib.suppress(_UnknownError):
            if scope.value(test) is True:
                self.found.values |= self._guest.asserted
        self._guest.asserted = None

    def _if(self, node: ast.If, scope: _Scope) -> None:
        try:
            holds = bool(scope.value(node.test))
        except _UnknownError:
            branches = [*node.body, *node.orelse]
            ends = (ast.Return, ast.Continue, ast.Break)  # where it raises, nothing is claimed afterwards
            if any(isinstance(inner, ends) for outer in branches for inner in ast.walk(outer)):
                raise _NotReached from None
            scope.forget(*branches)
            return
        self.read(node.body if holds else node.orelse, scope)

    def _for(self, node: ast.For, scope: _Scope) -> None:
        try:
            values = scope.value(ast.Call(ast.Name("list", ast.Load()), [node.iter], []))
        except _UnknownError:
            scope.forget(node)
            return
        for value in values:
            scope.bind(node.target, value)
            self.read(node.body, scope)

    def _assign(self, target: ast.expr, value: ast.expr, scope: _Scope) -> None:
        try:
            scope.bind(target, scope.value(value))
        except _UnknownError:
            scope.forget(target)
            if isinstance(value, ast.Call):
                self._call(value, scope)

    def _call(self, call: ast.Call, scope: _Scope) -> None:
        """Follow a helper of the same module."""
        helper = scope.module.get(ast.unparse(call.func))
        if not isinstance(helper, types.FunctionType) or self._calls == _CALLS_MAX:
            return
        try:
            given = [part for one in call.args for part in self._argument(one, scope)]
            named = {one.arg: next(iter(self._argument(one.value, scope))) for one in call.keywords if one.arg}
            names = inspect.signature(helper).bind(*given, **named)
        except (_UnknownError, TypeError):
            return
        names.apply_defaults()
        self._calls += 1
        with contextlib.suppress(_Returned):
            self.read(_body(helper), _Scope(dict(names.arguments), helper.__globals__))
        self._calls -= 1

    @staticmethod
    def _argument(node: ast.expr, scope: _Scope) -> Sequence[object]:
        if isinstance(node, ast.Starred):
            return list(scope.value(node.value))
        try:
            return [scope.value(node)]
        except _UnknownError:
            return [_UnknownValue()]
