"""hugepfn's scenarios as ``hugepfn list`` shows them, read from their source, without importing it."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from harness import kernel_functions
from harness.guest.compiler import guest_tests_dir


class ScenarioLine(NamedTuple):
    """The line of ``hugepfn list`` about one scenario."""

    name: str
    levels: str  # "pte pmd pud"; empty for a scenario without levels
    claim: str  # the first line of the docstring
    decided_by: tuple[str, ...]  # the kernel functions: "mm/memory.c copy_pte_range()"
    file: Path


def scenario_lines(names: Collection[str] = ()) -> list[ScenarioLine]:
    """Return every scenario, read from the source.

    :param names: only those in files that define one of these; parsing all files takes a tenth of a second.
    """
    found = []
    for path in sorted(guest_tests_dir().glob("test_*.py")):
        text = path.read_text()
        if names and not any(f"def test_{name}(" in text for name in names):
            continue
        body = ast.parse(text).body
        shared = {ast.unparse(node.targets[0]): node.value for node in body if isinstance(node, ast.Assign)}
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                claim = (ast.get_docstring(node) or "").splitlines()[:1]
                name = node.name.removeprefix("test_")
                decorators = [shared.get(ast.unparse(one), one) for one in node.decorator_list]
                levels = " ".join(ast.literal_eval(argument) for argument in _marked(decorators, "levels"))
                decided_by = tuple(map(str, _functions(_marked(decorators, "decided_by"))))
                found.append(ScenarioLine(name, levels, "".join(claim), decided_by, path))
    return found


def _functions(arguments: Iterable[ast.expr]) -> Iterator[kernel_functions.KernelFunction]:
    """Yield the functions behind ``fn.NAME`` and the tables ``fn.NAME_BY`` of harness/kernel_functions.py."""
    for argument in arguments:
        value = getattr(kernel_functions, ast.unparse(argument).removeprefix("fn."))
        yield from dict.fromkeys(value.values()) if isinstance(value, Mapping) else (value,)


def _marked(decorators: Iterable[ast.expr], marker: str) -> list[ast.expr]:
    for decorator in decorators:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(f"mark.{marker}"):
            return decorator.args
    return []
