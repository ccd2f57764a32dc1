"""``make mutation``: break one place of the Python code at a time, and count how often the host tests notice it.

    python tests/mutation/sample.py [--count 200] [--seed 13] [--workers 2] [--list] [FILE...]

A mutant is one change of one expression or statement: another comparison, another boolean or arithmetic operator, a
negated condition, a number off by one, a lost return value, a statement that is left out, two swapped arguments.
Messages, annotations, decorators and docstrings are never changed. The same seed draws the same mutants from the same
sources.

Each mutant is written into a copy of the tree. The tests that import its module run first, then those that reach it
through other modules. A test that fails or does not end has caught it. The survivors are written to ``--output``, and
tests/mutation/survivors.md says why a survivor is accepted.
"""

from __future__ import annotations

import argparse
import ast
import copy
import enum
import functools
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("harness/pagetable", "harness/verdict", "harness/observe")
#: These tests read the sources of harness/, so they fail at changes that no caller would notice.
SOURCE_READERS = ("test_imports.py", "test_waits.py")
EXPECTED_PERCENT = 95
_SPARE_S = 30.0

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitAnd,
}


class End(enum.Enum):
    """How the tests of a mutant ended."""

    PASSED = "SURVIVED"
    FAILED = "caught"
    HUNG = "hung"  # the tests did not end in time: caught as well, unless the host was too busy


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    path: Path  # relative to the root
    line: int
    start: int  # in bytes of the file
    end: int
    new: str
    what: str

    def apply(self, source: bytes) -> bytes:
        """Return the content of the file with the change."""
        return source[: self.start] + self.new.encode() + source[self.end :]

    def describe(self, source: bytes) -> str:
        """Place, change and code, as a row of the table of survivors."""
        old = " ".join(source[self.start : self.end].decode().split())
        new = "(left out)" if self.new == "pass" else f"`{self.new}`"
        cells = [f"{self.path}:{self.line}", self.what, f"`{old}`", new]
        escaped = [cell.replace("|", r"\|") for cell in cells]
        return f"| {' | '.join(escaped)} |"


class _Finder(ast.NodeVisitor):
    """Collects every mutant of one file."""

    def __init__(self, path: Path, source: bytes) -> None:
        self._path = path
        self._line_starts = [0]
        for line in source.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))
        self.found: list[Mutant] = []

    def _add(self, node: ast.expr | ast.stmt, new: str, what: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._line_starts[node.lineno - 1] + node.col_offset
        end = self._line_starts[node.end_lineno - 1] + node.end_col_offset
        self.found.append(Mutant(self._path, node.lineno, start, end, new, what))

    def _replace(self, node: ast.expr, new: ast.expr, what: str) -> None:
        self._add(node, f"({ast.unparse(new)})", what)

    def _leave_out(self, node: ast.stmt) -> None:
        self._add(node, "pass", "a statement is left out")

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)

    # --- never changed -----------------------------------------------------------------------------

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        if not any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases):
            self._visit_all(node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._visit_all([*node.args.defaults, *node.args.kw_defaults, *node.body])

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if not (isinstance(node.annotation, ast.Name) and node.annotation.id == "TypeAlias"):
            self._visit_all([node.value])

    def visit_keyword(self, node: ast.keyword) -> None:
        if node.arg != "strict":  # an argument of zip(), which is only a check
            self.visit(node.value)

    # --- statements ----------------------------------------------------------------------------------

    def visit_Raise(self, node: ast.Raise) -> None:
        self._leave_out(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant) or _logs(node.value):
            return
        self._leave_out(node)
        self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(target, ast.Name) and _is_class_name(target.id) for target in node.targets):
            return  # a type alias, or a TypeVar
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript):
            self._leave_out(node)
        self._visit_all([node.value])

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._leave_out(node)
        self.visit(node.value)

    def visit_Continue(self, node: ast.Continue) -> None:
        self._leave_out(node)

    def visit_Break(self, node: ast.Break) -> None:
        self._leave_out(node)

    def visit_Return(self, node: ast.Return) -> None:
        if node.value is None:
            self._leave_out(node)
        else:
            if not (isinstance(node.value, ast.Constant) and node.value.value in (None, False)):
                self._add(node, "return None", "the return value is lost")
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self._negate(node.test)
            self.generic_visit(node)

    # --- expressions -----------------------------------------------------------------------------------

    def _negate(self, test: ast.expr) -> None:
        """Negate a condition, unless an operator in it is mutated anyway."""
        if not isinstance(test, ast.Compare | ast.UnaryOp):
            self._replace(test, ast.UnaryOp(ast.Not(), test), "the condition is negated")

    def visit_IfExp(self, node: ast.IfExp) -> None:
        self._negate(node.test)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self._negate(test)
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        for number, operator in enumerate(node.ops):
            new = copy.deepcopy(node)
            new.ops[number] = _COMPARISONS[type(operator)]()
            self._replace(node, new, "another comparison")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        self._replace(node, ast.BoolOp(other, node.values), "and / or")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.Invert):
            self._replace(node, node.operand, "not / ~ is lost")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = _OPERATORS.get(type(node.op))
        if other is not None and not (_is_text(node.left) or _is_text(node.right)):
            self._replace(node, ast.BinOp(node.left, other(), node.right), "another operator")
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self._replace(node, ast.Constant(not node.value), "True / False")
        elif isinstance(node.value, int):
            self._replace(node, ast.Constant(node.value + 1), "a number off by one")

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("isinstance", "cast", "TypeVar"):
            self._visit_all(arg for arg in node.args if not isinstance(arg, ast.BinOp))
            return
        if len(node.args) > 1 and not any(isinstance(arg, ast.Starred) for arg in node.args[:2]):
            first, second, *rest = node.args
            if ast.dump(first) != ast.dump(second):
                swapped = ast.Call(node.func, [second, first, *rest], node.keywords)
                self._replace(node, swapped, "two arguments are swapped")
        self.generic_visit(node)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def _is_class_name(name: str) -> bool:
    return name[0].isupper() and not (len(name) > 1 and name.isupper())


def _logs(node: ast.expr) -> bool:
    """Whether a statement is a call like ``log.debug(...)``."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id.lower().strip("_") in ("log", "logger", "logging")
    )


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of one file, in the order of the source."""
    source = (ROOT / path).read_bytes()
    finder = _Finder(path, source)
    finder.visit(ast.parse(source))
    return sorted(finder.found, key=lambda one: (one.start, one.end, one.new))


# --- which tests -----------------------------------------------------------------------------------------


def _module_file(name: str) -> Path | None:
    """The file of a module of this repository, relative to the root."""
    base = Path(*name.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None


@functools.cache
def _imports(path: Path) -> frozenset[Path]:
    """The files of this repository that a file imports itself; an attribute of a package counts as the package."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found.update(file for name in names if (file := _module_file(name)) is not None)
    return frozenset(found)


@functools.cache
def _reaches(path: Path) -> frozenset[Path]:
    """Every file that is imported when this one is."""
    seen: set[Path] = set()
    left = [path]
    while left:
        for file in _imports(left.pop()) - seen:
            seen.add(file)
            left.append(file)
    return frozenset(seen)


def host_tests() -> list[Path]:
    """The tests that need no QEMU, without those that read the sources."""
    paths = sorted((ROOT / "tests").glob("test_*.py"))
    return [path.relative_to(ROOT) for path in paths if path.name not in SOURCE_READERS]


def stages(module: Path) -> tuple[list[Path], list[Path]]:
    """The tests of a module: those that import it (directly or through its package), and those that reach it."""
    wanted = {module}
    package = module.parent / "__init__.py"
    if (ROOT / package).is_file() and module in _imports(package):
        wanted.add(package)
    tests = host_tests()
    near = [test for test in tests if wanted & _imports(test)]
    near.sort(key=lambda test: (module.stem not in test.stem, module not in _imports(test), test))
    far = [test for test in tests if test not in near and module in _reaches(test)]
    return near, far


# --- running -----------------------------------------------------------------------------------------------


def _run_tests(
    tree: Path, tests: Sequence[Path], timeout_s: float | None, *, bytecode: bool = False
) -> tuple[End, str]:
    """How these tests end in a copy of the tree, and what pytest printed last."""
    if not tests:
        return End.PASSED, ""
    argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--no-header"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    if not bytecode:  # a mutant may have the same size and time as the original file
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
    with subprocess.Popen(
        [*argv, *map(str, tests)],
        cwd=tree,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=timeout_s)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if isinstance(error, subprocess.TimeoutExpired):
                return End.HUNG, ""
            raise
    return End.FAILED if process.returncode else End.PASSED, said.strip()[-2000:]


def _judge(mutant: Mutant, tree: Path, timeout_s: float) -> End:
    """How the tests end with the mutant."""
    path = tree / mutant.path
    source, status = path.read_bytes(), path.stat()
    for old in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        old.unlink()
    path.write_bytes(mutant.apply(source))
    try:
        ends = (_run_tests(tree, tests, timeout_s)[0] for tests in stages(mutant.path))
        return next((end for end in ends if end is not End.PASSED), End.PASSED)
    finally:
        path.write_bytes(source)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _run(mutants: Sequence[Mutant], workers: int, folder: Path) -> Iterator[tuple[Mutant, End]]:
    """Each mutant and how its tests end, in the order of the sample.

    :raises SystemExit: the tests fail without a mutant.
    """
    first = folder / "0"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, first / name)
    near = {test for mutant in mutants for test in stages(mutant.path)[0]}
    far = {test for mutant in mutants for test in stages(mutant.path)[1]} - near
    began_s = time.monotonic()
    for tests in (near, far):
        end, said = _run_tests(first, sorted(tests), None, bytecode=True)
        if end is not End.PASSED:
            raise SystemExit(f"the tests fail without a mutant, so they prove nothing:\n{said}")
    timeout_s = 3 * (time.monotonic() - began_s) + _SPARE_S
    print(f"{len(near | far)} test files pass without a mutant; timeout {timeout_s:.0f} s per mutant", flush=True)

    trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
    trees.put(first)
    for number in range(1, workers):
        trees.put(Path(shutil.copytree(first, folder / str(number))))

    def judge(mutant: Mutant) -> End:
        tree = trees.get()
        try:
            return _judge(mutant, tree, timeout_s)
        finally:
            trees.put(tree)

    with ThreadPoolExecutor(workers) as pool:
        yield from zip(mutants, pool.map(judge, mutants), strict=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Break the code in many places, one at a time, and count how often a test notices."
    )
    parser.add_argument("--count", type=int, default=200, help="how many mutants to draw (200)")
    parser.add_argument("--seed", type=int, default=13, help="another seed draws other mutants (13)")
    parser.add_argument("--workers", type=int, default=2, help="how many run at once (2)")
    parser.add_argument("--list", action="store_true", help="print the mutants, and run nothing")
    parser.add_argument("--output", type=Path, default=ROOT / "build/mutation.md", help="the table of survivors")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="only mutants of these files")
    return parser.parse_args()


def main() -> int:
    """Return 0 if at least 95 % are caught."""
    wanted = _arguments()
    paths = [path.resolve().relative_to(ROOT) for path in wanted.files] or [
        path.relative_to(ROOT) for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))
    ]
    every = [mutant for path in paths for mutant in mutants_of(path)]
    mutants = random.Random(wanted.seed).sample(every, min(wanted.count, len(every)))
    print(f"{len(mutants)} of {len(every)} mutants in {len(paths)} files, seed {wanted.seed}", flush=True)
    if wanted.list:
        print(*(mutant.describe((ROOT / mutant.path).read_bytes()) for mutant in mutants), sep="\n")
        return 0
    rows, hung = [], 0
    with tempfile.TemporaryDirectory(prefix="hugepfn-mutation-") as folder:
        for number, (mutant, end) in enumerate(_run(mutants, wanted.workers, Path(folder)), start=1):
            row = mutant.describe((ROOT / mutant.path).read_bytes())
            print(f"{number:4} {end.value:8} {row}", flush=True)
            rows += [row] if end is End.PASSED else []
            hung += end is End.HUNG
    caught = len(mutants) - len(rows)
    percent = 100 * caught / len(mutants)
    summary = f"{caught} of {len(mutants)} mutants caught ({percent:.1f} %), {hung} by a hang; seed {wanted.seed}."
    table = ["| place | change | code | became |", "|---|---|---|---|", *sorted(rows)]
    wanted.output.parent.mkdir(parents=True, exist_ok=True)
    wanted.output.write_text("\n".join([summary, "", *(table if rows else ["No mutant survived."]), ""]))
    print(f"{summary} The survivors are in {wanted.output}.")
    return 0 if percent >= EXPECTED_PERCENT else 1


if __name__ == "__main__":
    sys.exit(main())
