"""Tests for the sampler of mutants: what it changes, what it never changes, and which tests it runs first."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutation import sample
from tests.mutation.sample import ROOT, mutants_of, stages

SOURCE = '''"""Doc 1."""

from __future__ import annotations

KNOWN: int = 7
Pair = int | str


@dataclass(frozen=True)
class Thing(Base):
    """Doc 2."""

    size: int | None = 3

    def at(self, number: int | str = 4) -> int | None:
        """Doc 5."""
        if number > self.size and not self.gone:
            raise ValueError(f"{number + 1} of {self.size - 2}", 8)
        self.size += number << 1
        return call(number, "b") or None

    def say(self) -> None:
        log.debug("x %d", 6)
        "a" + self.name
        self.tell(*self.names, 9)
'''


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, str]]:
    """Return each mutant of SOURCE, as the old text and the new text. All of them must compile."""
    (tmp_path / "thing.py").write_text(SOURCE)
    monkeypatch.setattr(sample, "ROOT", tmp_path)
    found = mutants_of(Path("thing.py"))
    source = SOURCE.encode()
    for mutant in found:
        ast.parse(mutant.apply(source))
        assert mutant.apply(source).count(b"\n") <= source.count(b"\n")
        assert source[: mutant.start].count(b"\n") + 1 == mutant.line
    return [(source[mutant.start : mutant.end].decode(), mutant.new) for mutant in found]


def test_the_changes_of_a_source(changed: list[tuple[str, str]]) -> None:
    assert sorted(changed) == sorted(
        [
            ("7", "(8)"),
            ("3", "(4)"),
            ("4", "(5)"),
            ("number > self.size and not self.gone", "(not (number > self.size and (not self.gone)))"),
            ("number > self.size and not self.gone", "(number > self.size or not self.gone)"),
            ("number > self.size", "(number >= self.size)"),
            ("not self.gone", "(self.gone)"),
            ('raise ValueError(f"{number + 1} of {self.size - 2}", 8)', "pass"),
            ("self.size += number << 1", "pass"),
            ("number << 1", "(number >> 1)"),
            ("1", "(2)"),
            ('return call(number, "b") or None', "return None"),
            ('call(number, "b") or None', "(call(number, 'b') and None)"),
            ('call(number, "b")', "(call('b', number))"),
            ('"a" + self.name', "pass"),
            ("self.tell(*self.names, 9)", "pass"),
            ("9", "(10)"),
        ]
    )


def test_the_nearest_tests_come_first() -> None:
    near, far = stages(Path("harness/pagetable/entry_runs.py"))
    assert near[0] == Path("tests/test_pagetable_entry_runs.py")
    assert not set(near) & set(far)
    assert Path("tests/test_walk_view.py") in near + far
    assert not {Path("tests/test_imports.py"), Path("tests/test_waits.py")} & {*near, *far}
    assert all((ROOT / test).is_file() for test in near + far)
