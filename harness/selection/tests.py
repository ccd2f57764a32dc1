"""Which tests run: once per page-table level, and only the selected ones; and what is known about them beforehand."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.guest.compiler import guest_tests_dir
from harness.levels import level_label
from harness.pagetable import LEAF_LABELS, Level
from harness.selection.selected import Selected, check_selects, scenario_and_level
from harness.verdict.invariants import Invariant
from harness.verdict.known_bugs import KnownBug, parse_ledger, possible
from harness.verdict.seen import Facts, parse_facts

LEVELS = LEAF_LABELS


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test per level."""
    marker = metafunc.definition.get_closest_marker("levels")
    if marker is None or "level" not in metafunc.fixturenames:
        return
    names = [name for name in _levels(marker) if name in LEVELS]  # for the others see check_levels()
    metafunc.parametrize("level", [Level.from_label(name) for name in names], ids=names)


def _levels(marker: pytest.Mark) -> list[str]:
    """The levels of a marker by their names, where they may also stand as 4K, 2M or 1G."""
    return [level_label(name) if isinstance(name, str) else str(name) for name in marker.args]


def check_levels(item: pytest.Item) -> None:
    """Refuse a level that does not exist. During collection this would be a traceback through pytest."""
    marker = item.get_closest_marker("levels")
    if marker is not None and (not marker.args or not set(_levels(marker)) <= set(LEVELS)):
        raise pytest.UsageError(f"{item.nodeid}: levels{marker.args!r}; valid values: {', '.join(LEVELS)}")


def check_waivers(item: pytest.Item) -> None:
    """Refuse a waiver without an invariant, without a reason, or for a test without a machine."""
    for marker in item.iter_markers("waive"):
        names = [one.value for one in Invariant]
        unknown = [name for name in marker.args if name not in names]
        if unknown or not marker.args:
            valid = "".join(f"\n  {name}" for name in names)
            what = f"no invariant is called {unknown[0]!r}" if unknown else "waive() names no invariant"
            raise pytest.UsageError(f"{item.nodeid}: {what}; valid names:{valid}")
        if not str(marker.kwargs.get("reason", "")).strip() or marker.kwargs.keys() != {"reason"}:
            raise pytest.UsageError(f'{item.nodeid}: waive() needs a reason: waive({marker.args[0]!r}, reason="...")')
        if "vm" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid}: waive() is for tests that take the fixture vm")


def wanted_waivers(item: pytest.Item) -> dict[Invariant, str]:
    """Return the invariants that need not hold in a test, each with the reason that the test gives."""
    return {Invariant(name): str(one.kwargs["reason"]) for one in item.iter_markers("waive") for name in one.args}


def check_complaints(item: pytest.Item) -> None:
    """Refuse an expected complaint that is no title, or for a test without a machine of its own."""
    for marker in item.iter_markers("expect_complaint"):
        titles = [one for one in marker.args if isinstance(one, str) and one.strip()]
        if not marker.args or len(titles) < len(marker.args) or marker.kwargs:
            raise pytest.UsageError(
                f'{item.nodeid}: expect_complaint() takes titles as `hugepfn dmesg` gives them: "WARNING in FUNC"'
            )
        if "vm" not in getattr(item, "fixturenames", ()):
            raise pytest.UsageError(f"{item.nodeid}: expect_complaint() is for tests that take the fixture vm")


def expected_complaints(item: pytest.Item) -> tuple[str, ...]:
    """Return the titles of the complaints that have to come in a test."""
    return tuple(dict.fromkeys(title for one in item.iter_markers("expect_complaint") for title in one.args))


def has_machine(item: pytest.Item) -> bool:
    """Return whether a test uses a machine."""
    return not {"vm", "live_vm"}.isdisjoint(getattr(item, "fixturenames", ()))


def scenario_of(item: pytest.Item) -> str:
    """Return a test's scenario: its name without ``test_``, with its class and its parameters other than the level."""
    name = item.nodeid.partition("::")[2]
    if level_of(item) is None and "[" in name:  # none of its parameters is the level, whatever their values
        plain, _, parameters = name.partition("[")
        return f"{scenario_and_level(plain)[0]}[{parameters}"
    return scenario_and_level(name)[0]


def own_file(file: Path | None) -> str:
    """Return the path of a user's own test file; "" for hugepfn's scenarios."""
    return "" if file is None or file.parent == guest_tests_dir() else str(file)


def selected_by(item: pytest.Item) -> Selected:
    """Return what selects only this test."""
    return Selected(item.path, scenario_of(item), level_of(item))


def level_of(item: pytest.Item) -> str | None:
    """Return the level that a test is about: its parameter, or the only one that its marker names."""
    callspec = getattr(item, "callspec", None)
    if callspec is not None and isinstance(callspec.params.get("level"), Level):
        return str(callspec.params["level"].label)
    marker = item.get_closest_marker("levels")
    return _levels(marker)[0] if marker is not None and len(marker.args) == 1 else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests by --hugepfn-level and --hugepfn-scenario."""
    for item in items:
        check_levels(item)
        check_waivers(item)
        check_complaints(item)
        if has_machine(item):
            try:
                ledger_of(item.path.parent)
                facts_of(item.path.parent)
            except UsageError as error:
                raise pytest.UsageError(str(error)) from error
    levels = config.getoption("hugepfn_level")
    try:
        words = [Selected.parse(word) for word in config.getoption("hugepfn_scenario") or ()]
        check_selects(words, [selected_by(item) for item in items])
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    kept: list[pytest.Item] = []
    dropped: list[pytest.Item] = []
    for item in items:
        test = selected_by(item)
        wanted = not levels or test.level in (*levels, None)
        wanted &= not words or any(word.matches(test) for word in words)
        (kept if wanted else dropped).append(item)
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = kept


@functools.cache
def ledger_of(folder: Path) -> tuple[KnownBug, ...]:
    """Return the list of known bugs of the scenarios in a folder: its ``known_bugs.toml``, or empty.

    :raises UsageError: it cannot be read.
    """
    path = folder / "known_bugs.toml"
    return tuple(parse_ledger(path.read_text())) if path.is_file() else ()


@functools.cache
def facts_of(folder: Path) -> Facts:
    """Return the kernels that were seen with each known bug: the folder's ``known_bugs_seen.toml``, or empty.

    :raises UsageError: it cannot be read.
    """
    path = folder / "known_bugs_seen.toml"
    return parse_facts(path.read_text()) if path.is_file() else Facts()


def bugs_of(folder: Path, release: str) -> tuple[KnownBug, ...]:
    """Return the known bugs that a kernel may have, see :func:`harness.verdict.known_bugs.possible`."""
    return possible(ledger_of(folder), facts_of(folder), release)
