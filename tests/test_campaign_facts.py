"""Tests for ``make facts``: the conclusions from a matrix, the files written, and the changes reported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from harness.campaign import facts as command
from harness.campaign.facts import RunsByKernel, check_exact, measured, sightings, version_of, write
from harness.campaign.facts_text import Grid, Known, command_shows, fill, mended_command
from harness.campaign.kernels import Kernels, RunOptions
from harness.campaign.units import local
from harness.campaign.wanted import Wanted
from harness.errors import MachineryError, UsageError
from harness.selection.selected import Selected
from harness.selection.tests import facts_of, ledger_of
from harness.verdict import Outcome, Run, ScenarioResult
from harness.verdict.claims import BugSeen
from harness.verdict.known_bugs import KnownBug, parse_ledger
from harness.verdict.seen import Facts, Sightings, parse_facts
from harness.verdict.table import TROUBLE, Column, Table

ENTRY = """
[[bug]]
id = "{id}"
title = "the leaf is lost: and more"
scenario = "{scenario}"
levels = ["pud"]
function = "mm/memory.c zap()"
reproduce = "hugepfn run {scenario} --level pud --kernel debian:6.12"
{more}
[[bug.symptom]]
claim = "it stays"
"""
LIST = ENTRY.format(id="HP-001", scenario="fork", more="")
PASS, BUG, SKIP = Outcome.PASSED, Outcome.KNOWN_BUG, Outcome.SKIPPED
OLD, NEW = "6.12.117", "6.12.118"
SCENARIOS = (Selected(None, "fork", "pud"), Selected(None, "zap", "pud"))
DAY, LATER = date(2026, 11, 22), date(2026, 11, 26)


def run(version: str, outcomes: Mapping[str, Outcome], day: date = LATER, bug: str = "HP-001") -> Run:
    """A run of one kernel, with each scenario at pud."""
    known, reasons = {BUG: (BugSeen(bug, "the leaf is lost"),)}, {SKIP: "no huge pfnmap"}
    results = tuple(
        ScenarioResult(name, "pud", one, reasons.get(one, ""), known_bugs=known.get(one, ()))
        for name, one in outcomes.items()
    )
    kernel = {"spec": f"debian:{version}", "release": f"{version}+deb13-amd64"}
    return Run(results, {"kernel": kernel, "date": f"{day}T01:02:03+00:00", "qemu": "7.2.22", "accel": "tcg"})


def table(*runs: Run) -> Table:
    return Table.of([Column(one.context["kernel"]["spec"], (one,)) for one in runs])


def results(*runs: Run) -> RunsByKernel:
    return RunsByKernel({one.context["kernel"]["spec"]: (one,) for one in runs}, {"6.19": "only in part"})


def ledger(text: str = LIST) -> list[KnownBug]:
    return parse_ledger(text)


# --- conclusions -----------------------------------------------------------------------------------


def test_present_and_absent_have_the_date_of_the_first_result() -> None:
    first = sightings(table(run(OLD, {"fork": BUG}, DAY)), ledger(), Facts())
    assert first == {"HP-001": Sightings({OLD: DAY})}
    both = table(run(OLD, {"fork": BUG}), run(NEW, {"fork": PASS}))
    assert sightings(both, ledger(), Facts(bugs=first)) == {"HP-001": Sightings({OLD: DAY}, {NEW: LATER})}


def test_a_new_measurement_may_change_the_result() -> None:
    before = Facts(bugs={"HP-001": Sightings({OLD: DAY})})
    assert sightings(table(run(OLD, {"fork": PASS})), ledger(), before)["HP-001"] == Sightings({}, {OLD: LATER})


@pytest.mark.parametrize("outcome", [SKIP, Outcome.FAILED, Outcome.ERROR])
def test_only_a_pass_means_absent(outcome: Outcome) -> None:
    assert sightings(table(run(NEW, {"fork": outcome})), ledger(), Facts())["HP-001"] == Sightings()
    assert sightings(table(run(NEW, {"exit": PASS})), ledger(), Facts())["HP-001"] == Sightings()


def test_a_bug_that_another_may_hide_is_not_absent() -> None:
    two = ledger(LIST.replace('"fork"', '"fork.*"') + ENTRY.format(id="HP-002", scenario="fork.*", more=""))
    seen = sightings(table(run(NEW, {"fork": BUG, "fork_again": PASS})), two, Facts())
    assert seen == {"HP-001": Sightings({NEW: LATER}), "HP-002": Sightings()}


@pytest.mark.parametrize("more", ["sometimes = true", 'config = ["DEBUG_VM"]'])
def test_one_pass_proves_nothing_for_a_race_or_another_configuration(more: str) -> None:
    one = ledger(ENTRY.format(id="HP-001", scenario="fork", more=more))
    before = Facts(bugs={"HP-001": Sightings({OLD: DAY})})
    assert sightings(table(run(OLD, {"fork": PASS})), one, before)["HP-001"] == Sightings({OLD: DAY})
    assert sightings(table(run(NEW, {"fork": BUG})), one, before)["HP-001"] == Sightings({OLD: DAY, NEW: LATER})


def test_the_version_of_debians_older_kernels_is_not_in_their_release() -> None:
    old = Run((), {"kernel": {"spec": "debian:6.1.192", "release": "6.1.0-56-cloud-amd64"}, "qemu": "7"})
    built = Run((), {"kernel": {"spec": "debsrc:6.12+a.patch", "release": "6.12.118-hugepfn"}, "qemu": "7"})
    assert version_of(Column("debian:6.1.192", (old,))) == "6.1.192"
    assert version_of(Column("debsrc:6.12+a.patch", (built,))) == "6.12.118"
    with pytest.raises(UsageError, match=r"the release 6.1.0-56-cloud-amd64 does not contain the version"):
        version_of(Column("debian:6.1", (old,)))


@pytest.mark.parametrize("spec", ["debian:6.12", "debian", "debsrc:6.12.118", "debian:6.12.118-1", "/tmp/bzImage"])
def test_facts_are_about_stock_kernels_by_their_version(spec: str) -> None:
    with pytest.raises(UsageError, match="expected a stock kernel with its version"):
        check_exact(["debian:6.12.118", "debian:7.4~rc2", spec])


def test_the_facts_name_their_run() -> None:
    facts = measured(table(run(NEW, {"fork": PASS, "exit": PASS})), ledger(), Facts())
    assert facts.measured is not None
    assert (facts.measured.date, facts.measured.qemu, facts.measured.scenarios, facts.measured.cases) == (
        *(LATER, "7.2.22", 2, 2),
    )
    assert facts.kernels == {NEW: f"{NEW}+deb13-amd64"}


# --- files -----------------------------------------------------------------------------------------

README = """facts:
<!-- facts:begin sample -->
debian:6.12: Linux 6.12.1, QEMU 1 (tcg), 1 vCPU
<!-- facts:end -->
<!-- facts:begin example -->
<!-- facts:end -->
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source tree as it was when 6.12.117 was measured."""
    for folder in ("docs", "guest_tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "guest_tests" / "known_bugs.toml").write_text(LIST)
    (tmp_path / "guest_tests" / "known_bugs_seen.toml").write_text(f'[kernels]\n"{OLD}" = "x"\n')
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "docs" / "tutorial.md").write_text("nothing measured\n")
    (tmp_path / "CHANGELOG.md").write_text("- <!-- facts:begin count -->none<!-- facts:end -->: faults\n")
    (tmp_path / "docs" / "truth.md").write_text("<!-- facts:begin seen --><!-- facts:end -->\n")
    (tmp_path / "docs" / "matrix.md").write_text(f"```\n          {OLD}\nfork pud  ?\n\n```\n")
    forget()
    write(results(run(OLD, {"fork": BUG}, DAY), run("7.3.4", {"fork": BUG}, DAY)), [], tmp_path)
    forget()
    return tmp_path


def forget() -> None:
    ledger_of.cache_clear()
    facts_of.cache_clear()


def texts(tree: Path) -> dict[str, str]:
    return {str(path.relative_to(tree)): path.read_text() for path in tree.rglob("*") if path.is_file()}


def test_a_bug_that_is_fixed_in_a_series(tree: Path) -> None:
    assert "fork pud  bug HP-001 1  bug HP-001 1" in (tree / "docs" / "matrix.md").read_text()
    said = write(results(run(NEW, {"fork": PASS}), run("7.3.4", {"fork": BUG})), [], tree)
    assert said == [
        f"kernel {OLD} -> {NEW}",
        f"HP-001: present on {OLD} -> absent on {NEW}",
        "fork pud on 6.12: bug HP-001 -> pass",
        "command: hugepfn run fork --level pud --kernel debian:6.12 -> "
        "hugepfn run fork --level pud --kernel debian:7.3",
    ]
    found = texts(tree)
    assert "fork pud  pass* 1   bug HP-001 2" in found["docs/matrix.md"]
    assert "1  fixed here: HP-001 (6.12.117 had it)" in found["docs/matrix.md"]
    assert "not available: 6.19: only in part" in found["docs/matrix.md"]
    assert "| HP-001 | 6.12.117, 7.3.4 | 6.12.118 |" in found["docs/truth.md"]
    assert f"debian:6.12: Linux {NEW}+deb13-amd64, QEMU 7.2.22 (tcg), 1 vCPU" in found["README.md"]
    assert "HP-001 for instance shows on 7.3.4:\nthe leaf is lost.\n" in found["README.md"]
    assert ".venv/bin/hugepfn run fork --level pud --kernel debian:7.3 " in found["README.md"]
    assert "1 scenarios, 1 cases" in found["CHANGELOG.md"]
    assert '--kernel debian:7.3"' in found["guest_tests/known_bugs.toml"]


def test_the_same_results_change_nothing_but_the_date(tree: Path) -> None:
    before = texts(tree)
    same = {"fork": BUG}
    assert write(results(run(OLD, same, LATER), run("7.3.4", same, LATER)), [], tree) == []
    after = {name: text.replace(str(LATER), str(DAY)) for name, text in texts(tree).items()}
    assert after == before
    assert texts(tree)["docs/matrix.md"] != before["docs/matrix.md"], "the date must change"


def test_new_and_removed_kernels_and_new_cases(tree: Path) -> None:
    said = write(results(run(OLD, {"fork": BUG, "exit": PASS}), run("7.4.1", {"fork": Outcome.FAILED})), [], tree)
    assert said == [
        "kernel 7.4.1: a new series",
        "kernel 7.3.4: its series was not measured",
        "1 scenarios, 1 cases -> 2 scenarios, 2 cases",
        "exit pud: new",
    ]


def test_other_runs_count_for_bugs_only(tree: Path) -> None:
    built = run("7.4.1", {"fork": BUG})
    said = write(results(run(OLD, {"fork": BUG}), run("7.3.4", {"fork": BUG})), [results(built)], tree)
    assert said == ["HP-001 on 7.4.1: present"]
    assert "7.4.1" not in (tree / "docs" / "matrix.md").read_text()
    facts = parse_facts((tree / "guest_tests" / "known_bugs_seen.toml").read_text())
    assert list(facts.kernels) == [OLD, "7.3.4"]


def test_a_race_that_does_not_always_show_is_no_change(tree: Path) -> None:
    (tree / "guest_tests" / "known_bugs.toml").write_text(
        ENTRY.format(id="HP-001", scenario="fork", more="sometimes = true")
    )
    forget()
    assert write(results(run(OLD, {"fork": PASS}), run("7.3.4", {"fork": BUG})), [], tree) == []
    assert "fork pud  pass      bug HP-001 1" in (tree / "docs" / "matrix.md").read_text()
    facts = parse_facts((tree / "guest_tests" / "known_bugs_seen.toml").read_text())
    assert facts.of("HP-001") == Sightings({OLD: DAY, "7.3.4": DAY})


def test_a_kernel_without_results_is_not_written_down(tree: Path) -> None:
    before = texts(tree)
    broken = replace(run(NEW, {"fork": PASS}), context={**run(NEW, {}).context, TROUBLE: "QEMU is gone"})
    with pytest.raises(MachineryError, match=r"debian:6.12.118 has no complete results, .*: QEMU is gone"):
        write(results(broken), [], tree)
    assert texts(tree) == before


def test_without_the_series_of_the_sample_and_without_bugs(tree: Path) -> None:
    before = (tree / "README.md").read_text()
    write(results(run("7.4.1", {"fork": PASS})), [], tree)
    after = (tree / "README.md").read_text()
    assert before.splitlines()[2] in after, "the sample must stay as it was"
    assert "1 so far, each with the command that shows it.\n<!-- facts:end -->" in after


def test_an_unknown_mark_is_refused() -> None:
    known = Known(Facts(), Grid((), {}), ())
    with pytest.raises(UsageError, match="README: facts:begin date is not a known piece"):
        fill("<!-- facts:begin date --><!-- facts:end -->", known, "README")


# --- the commands of bugs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "shows"),
    [
        ("debian:6.12.117", True),
        ("debian:6.12.118", False),
        ("debian:6.12", False),  # the newest release of its series, which has the fix
        ("debian:7.3", True),
        ("debian:7.4", False),  # not measured
        ("$(hugepfn build debsrc:6.12.117 --fragment debug)", True),
        ("debian", False),
    ],
)
def test_a_command_names_a_kernel_that_has_the_bug(kernel: str, shows: bool) -> None:
    seen = Sightings({OLD: DAY, "7.3.4": DAY}, {NEW: DAY})
    assert command_shows(f"hugepfn run fork --kernel {kernel}", seen) is shows


def test_a_bug_without_a_current_kernel_keeps_its_command() -> None:
    (bug,) = ledger()
    facts = Facts(None, {NEW: "x"}, {"HP-001": Sightings({OLD: DAY}, {NEW: DAY})})
    assert mended_command(bug, facts) == "hugepfn run fork --level pud --kernel debian:6.12.117"


# --- runs ------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The list of kernels that were run. The mirror has two."""
    monkeypatch.chdir(tmp_path)
    specs: list[str] = []

    def run_kernel(spec: str, tests: Sequence[Selected], *_args: object) -> Run:
        specs.append(" ".join([spec, *map(str, tests)]))
        if spec == "debian:7.3.4" and len(specs) == 2:
            raise KeyboardInterrupt
        return run(spec.partition(":")[2], {one.scenario: PASS for one in tests or SCENARIOS[:1]})

    monkeypatch.setattr(local, "run_kernel", run_kernel)
    monkeypatch.setattr(command, "choose", lambda _words: Wanted((), (), SCENARIOS[:1]))
    monkeypatch.setattr(command, "check_kernels", lambda *_args: None)
    offered = Kernels(("debian:6.12.118", "debian:7.3.4"), {"6.19": "only in part"})
    monkeypatch.setattr(command, "choose_kernels", lambda *_args: offered)
    return specs


def test_an_interrupted_run_is_continued(ran: list[str]) -> None:
    nothing = RunsByKernel({}, {})
    with pytest.raises(KeyboardInterrupt):
        command.collect(("all-stock",), RunOptions(), 1, nothing, offline=False)
    kept = RunsByKernel.read(Path("build/facts.json"))
    assert list(kept.runs) == ["debian:6.12.118"]
    found = command.collect(("all-stock",), RunOptions(), 1, kept, offline=False)
    assert ran == ["debian:6.12.118", "debian:7.3.4", "debian:7.3.4"]
    assert list(found.runs) == ["debian:6.12.118", "debian:7.3.4"]
    assert found.missing == {"6.19": "only in part"}
    assert command.collect((), RunOptions(), 1, kept, offline=True) is kept


def test_only_new_scenarios_are_run(ran: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    have = RunsByKernel({f"debian:{one}": (run(one, {"fork": PASS}, DAY),) for one in (NEW, "7.3.4")}, {})
    assert command.collect(("all-stock",), RunOptions(), 1, have, offline=False).runs == have.runs
    monkeypatch.setattr(command, "choose", lambda _words: Wanted((), (), SCENARIOS))
    with pytest.raises(KeyboardInterrupt):
        command.collect(("all-stock",), RunOptions(), 1, have, offline=False)
    kept = RunsByKernel.read(Path("build/facts.json"))
    found = command.collect(("all-stock",), RunOptions(), 1, kept, offline=False)
    assert ran == ["debian:6.12.118 zap", "debian:7.3.4 zap", "debian:7.3.4 zap"]
    expected = {f"debian:{one}": (run(one, {"fork": PASS, "zap": PASS}),) for one in (NEW, "7.3.4")}
    assert found.runs == expected


def test_results_of_another_kernel_are_not_joined() -> None:
    before, later = run(NEW, {"fork": PASS}), run(NEW, {"fork": BUG, "zap": PASS})
    assert command.joined(before, later) == later
    nothing = Run((), {"kernel": {"spec": f"debian:{NEW}", "release": None}, TROUBLE: "its worker was lost"})
    assert command.joined(nothing, later) == later, "a kernel without results was not known"
    later.context["kernel"]["config_hash"] = "another"
    with pytest.raises(MachineryError, match=r"the earlier results are of another kernel .*; run without --from"):
        command.joined(before, later)


def test_results_may_be_a_matrix_or_a_run(tmp_path: Path) -> None:
    one, path = run(NEW, {"fork": PASS}), tmp_path / "results.json"
    path.write_text(json.dumps(one.to_json()))
    assert RunsByKernel.read(path).runs == {"debian:6.12.118": (one,)}
    path.write_text(json.dumps(results(one).to_json()))
    assert RunsByKernel.read(path) == results(one)
    for old, read in ((one.to_json() | {"version": 1}, 3), (results(one).to_json() | {"version": 1}, 2)):
        path.write_text(json.dumps(old))
        with pytest.raises(UsageError) as refused:
            RunsByKernel.read(path)
        assert str(refused.value) == (
            f"{path} has {old['schema']} version 1; expected version {read}: remove it and run again"
        )
    for text in ("[]", "{", '{"schema": "hugepfn-compare"}'):
        path.write_text(text)
        with pytest.raises(UsageError, match="expected a file that"):
            RunsByKernel.read(path)
