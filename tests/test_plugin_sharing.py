"""Tests for the cases of a test that share a clone. Boots no kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import AgentRefused
from tests.test_pytest_plugin import FakeVM, _host, machines, outcomes, pytest_run

__all__ = ["_host", "machines"]

pytest_plugins = ["pytester"]

SCENARIO = """
    import pytest
    ran = []

    {marker}
    @pytest.mark.parametrize("case", ["a", "b", "c"])
    def test_fork(vm, case, claim):
        assert not vm.closed
        assert not vm.runs
        vm.run({trouble})
        ran.append((case, vm.started.index(vm)))
        with claim("holds"):
            assert {condition}

    def test_next(vm):
        ran.append(("next", vm.started.index(vm)))
        print("RAN", *(f"{{name}}={{number}}" for name, number in ran))
"""
LEDGER = """
    [[bug]]
    id = "HP-7"
    title = "fork() write-protects every leaf"
    scenario = "fork"
    HERE
    function = "mm/huge_memory.c copy_huge_pmd()"
    reproduce = "hugepfn run fork"
    [[bug.symptom]]
    claim = "holds"
"""


def ran(
    pytester: pytest.Pytester,
    *args: str,
    condition: str = "True",
    trouble: str = "",
    marker: str = "@pytest.mark.leaves_no_trace",
) -> tuple[str, list[str]]:
    """Run the scenario, and return the machine of each case, and what was noted."""
    pytester.makepyfile(SCENARIO.format(condition=condition, trouble=trouble, marker=marker))
    result = pytest_run(pytester, "-s", *args)
    (line,) = [line for line in result.outlines if "RAN" in line]
    return line.partition("RAN ")[2], [line for line in result.errlines if "clone of its own" in line]


def test_the_cases_of_a_scenario_share_a_machine(pytester: pytest.Pytester, machines: list[FakeVM]) -> None:
    assert ran(pytester) == ("a=0 b=0 c=0 next=1", [])
    assert [one.closed for one in machines] == [True, True]


def test_what_does_not_pass_runs_again_in_a_machine_of_its_own(
    pytester: pytest.Pytester, machines: list[FakeVM], tmp_path: Path
) -> None:
    assert ran(pytester, condition="case != 'b'") == ("a=0 b=0 b=1 c=2 next=3", [])
    assert outcomes(pytester) == {"fork[a]": "passed", "fork[b]": "failed", "fork[c]": "passed", "next": "passed"}
    assert [one.closed for one in machines] == [True] * 4
    assert len(list((tmp_path / "cache" / "failures").iterdir())) == 1, "only the run that counts leaves evidence"


def test_what_passes_alone_has_passed_and_it_is_said(pytester: pytest.Pytester, machines: list[FakeVM]) -> None:
    order, notes = ran(pytester, condition="len(ran) != 2")
    assert order == "a=0 b=0 b=1 c=1 next=2"
    assert set(outcomes(pytester).values()) == {"passed"}
    assert notes == ["hugepfn: test_fork[b] passed in a clone of its own, but not after the case before it"]
    assert len(machines) == 3


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    ("args", "marker"),
    [
        ((), ""),
        (("--hugepfn-pristine",), "@pytest.mark.leaves_no_trace"),
        (("--hugepfn-no-clone",), "@pytest.mark.leaves_no_trace"),
        (("--hugepfn-device=ivshmem-plain",), "@pytest.mark.leaves_no_trace"),
        ((), "@pytest.mark.leaves_no_trace\n    @pytest.mark.machine(clone=False)"),
    ],
    ids=["not said", "not wanted", "no clones", "RAM behind the BAR", "a boot of its own"],
)
def test_a_machine_for_each_case(pytester: pytest.Pytester, args: tuple[str, ...], marker: str) -> None:
    assert ran(pytester, *args, marker=marker)[0] == "a=0 b=1 c=2 next=3"


@pytest.mark.usefixtures("machines")
def test_a_case_that_leaves_a_process_ends_its_machine(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeVM, "children", b"117 ")
    assert ran(pytester)[0] == "a=0 b=1 c=2 next=3"


@pytest.mark.usefixtures("machines")
def test_a_kernel_that_does_not_show_children(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_vm: FakeVM, _answer: bytes) -> bytes:
        raise AgentRefused("the guest's agent: No such file or directory", 2)

    monkeypatch.setattr(FakeVM, "on_loop", refuse)  # as without CONFIG_PROC_CHILDREN
    assert ran(pytester)[0] == "a=0 b=1 c=2 next=3"


@pytest.mark.parametrize(("needs", "alone"), [("", True), ("DEBUG_VM", False)])
def test_a_case_that_may_show_a_known_bug_runs_alone_and_the_other_machine_waits(
    pytester: pytest.Pytester, machines: list[FakeVM], needs: str, alone: bool
) -> None:
    (pytester.path / "known_bugs.toml").write_text(LEDGER.replace("HERE", f'config = ["{needs}"]' if needs else ""))
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.leaves_no_trace

        @pytest.mark.parametrize("case", ["a", "b"])
        def test_exit(vm, case): pass

        def test_fork(vm, claim):
            with claim("holds"):
                assert not vm.caps

        def test_next(vm): pass
        """
    )
    pytest_run(pytester)
    assert outcomes(pytester)["fork"] == ("known_bug" if alone else "failed")
    assert len(machines) == (2 if alone else 3), "one that all share, and one for each run of fork that failed"
    assert all(one.closed for one in machines)


@pytest.mark.usefixtures("machines")
def test_a_complaint_that_was_expected_ends_the_machine(pytester: pytest.Pytester) -> None:
    marker = '@pytest.mark.leaves_no_trace\n    @pytest.mark.expect_complaint("WARNING in f")'
    assert ran(pytester, marker=marker, trouble='trouble="WARNING in f"')[0] == "a=0 b=1 c=2 next=3"


def test_a_test_may_leave_a_trace_although_its_file_does_not(pytester: pytest.Pytester, machines: list[FakeVM]) -> None:
    marker = '@pytest.mark.leaves_no_trace\n    @pytest.mark.leaves_a_trace("loads a module")'
    assert ran(pytester, marker=marker)[0] == "a=0 b=1 c=2 next=3"
    assert len(machines) == 4


def test_the_tests_of_a_file_share_a_machine_and_those_of_two_files_do_not(
    pytester: pytest.Pytester, machines: list[FakeVM]
) -> None:
    body = "import pytest\npytestmark = pytest.mark.leaves_no_trace\n" + "".join(
        f"def test_{name}(vm): pass\n" for name in ("exit", "fork", "vfork")
    )
    pytester.makepyfile(test_one=body, test_two=body)
    pytest_run(pytester).assert_outcomes(passed=6)
    assert [one.closed for one in machines] == [True, True]


def test_a_machine_does_not_live_for_ever(pytester: pytest.Pytester, machines: list[FakeVM]) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.leaves_no_trace
        @pytest.mark.parametrize("case", range(40))
        def test_fork(vm, case): pass
        """
    )
    pytest_run(pytester).assert_outcomes(passed=40)
    assert len(machines) == 3, "sixteen cases each"


@pytest.mark.parametrize("trouble", ["BUG: KASAN: use-after-free in f", ""])
def test_what_the_kernel_complains_about_counts_wherever_it_shows(
    pytester: pytest.Pytester, machines: list[FakeVM], tmp_path: Path, trouble: str
) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        pytestmark = pytest.mark.leaves_no_trace

        def test_exit(vm): pass

        def test_fork(vm):
            if len(vm.started) == 1:
                vm.run(trouble={trouble!r})
                assert not {trouble!r} and False
        """
    )
    pytest_run(pytester)
    assert outcomes(pytester)["fork"] == ("failed" if trouble else "passed")
    assert len(machines) == (1 if trouble else 2)
    assert (tmp_path / "cache" / "failures").exists() is bool(trouble)


def test_what_fails_after_a_case_has_passed_runs_again_as_well(
    pytester: pytest.Pytester, machines: list[FakeVM]
) -> None:
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.leaves_no_trace

        @pytest.fixture
        def untainted(vm):
            yield
            assert len(vm.started) > 1, "the taint of an earlier case"

        def test_exit(vm): pass
        def test_fork(vm, untainted): pass
        def test_next(vm): pass
        """
    )
    pytest_run(pytester).assert_outcomes(passed=3)
    assert [one.closed for one in machines] == [True, True]


def test_a_failure_at_the_end_of_a_fixture_ends_the_machine_that_waits(
    pytester: pytest.Pytester, machines: list[FakeVM]
) -> None:
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.leaves_no_trace

        @pytest.fixture
        def broken():
            yield
            assert False

        def test_exit(broken, vm): pass
        def test_next(vm): assert len(vm.started) == 2
        """
    )
    pytest_run(pytester).assert_outcomes(passed=2, errors=1)
    assert [one.closed for one in machines] == [True, True]


def test_a_machine_is_not_lent_to_another_kernel(pytester: pytest.Pytester, machines: list[FakeVM]) -> None:
    pytester.makepyfile(
        """
        import dataclasses
        import pytest
        from tests.test_pytest_plugin import IMAGE
        pytestmark = pytest.mark.leaves_no_trace

        @pytest.fixture(params=["6.12", "7.3"], scope="module")
        def kernel(request):
            return dataclasses.replace(IMAGE, release=request.param)

        def test_exit(vm): pass
        def test_fork(vm, kernel): assert vm.image is kernel
        """
    )
    pytest_run(pytester).assert_outcomes(passed=4)
    assert len(machines) == 2


@pytest.mark.usefixtures("machines")
def test_a_test_that_asks_for_its_machine_later_gets_a_new_one(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.leaves_no_trace

        def test_exit(vm): pass
        def test_fork(request): assert len(request.getfixturevalue("vm").started) == 2
        def test_next(vm): assert len(vm.started) == 3
        """
    )
    pytest_run(pytester).assert_outcomes(passed=3)


def test_a_session_that_stops_ends_the_machine_that_waits(pytester: pytest.Pytester, machines: list[FakeVM]) -> None:
    pytester.makeconftest("""
        def pytest_runtest_teardown(item):
            item.session.shouldstop = "enough"
    """)
    pytester.makepyfile(SCENARIO.format(condition="True", trouble="", marker="@pytest.mark.leaves_no_trace"))
    pytest_run(pytester)
    assert [one.closed for one in machines] == [True]
