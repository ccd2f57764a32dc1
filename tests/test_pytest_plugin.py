"""Tests for the pytest plugin, run by pytest: options, levels, preconditions, claims, results. Boots no kernel."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.config import DEFAULT, MachineConfig
from harness.errors import BootError, CannotKnow, RunBroken
from harness.kernel import ImageKind, Kconfig, KernelImage
from harness.machine import preparation
from harness.machine.machine import Origin
from harness.observe.probe import probe_image
from harness.plugin import fixtures
from harness.plugin.fixtures import BOOT_ATTEMPTS
from harness.qemu.binary import find_qemu
from harness.qemu.spec import Accel, Device, Root
from harness.results import LOG_LINES_MAX
from harness.verdict import ClaimKind, Run, Taint, words
from harness.verdict.capabilities import Capabilities
from harness.verdict.expected.complaints import without_expected
from harness.verdict.invariants import Invariant, Violation
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.troubles import KernelComplaint, KernelTroubles
from tests import schemas
from tests.hand_made_stop import DIRTY, leaf, stop

pytest_plugins = ["pytester"]

Say = Callable[[str], None]


@pytest.fixture(autouse=True)
def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, a script in place of QEMU, and no other program may be started."""
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'QEMU emulator version 8.2.1 (fake)'\n")
    qemu.chmod(0o755)
    monkeypatch.setenv("HUGEPFN_QEMU", str(qemu))
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    find_qemu.cache_clear()

    class OnlyQemu(subprocess.Popen[bytes]):
        def __init__(self, args: Any, *rest: Any, **kwargs: Any) -> None:
            assert args[0] == str(qemu), f"started {args}"
            super().__init__(args, *rest, **kwargs)

    monkeypatch.setattr(subprocess, "Popen", OnlyQemu)
    yield
    find_qemu.cache_clear()


def pytest_run(pytester: pytest.Pytester, *args: str, further: Sequence[object] = ()) -> pytest.RunResult:
    """Run one session in this process, with --hugepfn-json. Without Hypothesis, whose start takes a second."""
    plugins = ("-p", "harness.pytest_plugin", "-p", "no:hypothesispytest")
    return pytester.runpytest_inprocess(*plugins, "--hugepfn-json=results.json", *args, plugins=further)


def written(pytester: pytest.Pytester) -> dict[str, Any]:
    data = json.loads((pytester.path / "results.json").read_text())
    schemas.check(data)
    assert isinstance(data, dict)
    return data


def outcomes(pytester: pytest.Pytester) -> dict[str, str]:
    """Return scenario and level -> outcome, in order. Each may occur only once."""
    results = written(pytester)["results"]
    found = {" ".join(filter(None, (one["scenario"], one["level"]))): one["outcome"] for one in results}
    assert len(found) == len(results)
    return found


#: Replaces the machine by an object that the tests here do not use.
NO_MACHINE = """
    import pytest

    @pytest.fixture
    def vm():
        return None
"""


# --- options -------------------------------------------------------------------------------------


def test_the_header_shows_what_is_known_and_fetches_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_nothing(): pass")
    result = pytest_run(pytester, "--hugepfn-kernel=debian:6.12", "--hugepfn-accel=tcg")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["hugepfn: kernel debian:6.12 (not fetched yet), accelerator tcg, QEMU 8.2.1"], consecutive=True
    )


def test_the_header_of_a_host_without_qemu(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_QEMU", "no-such-qemu")
    pytester.makepyfile("def test_nothing(): pass")
    result = pytest_run(pytester)
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        ["hugepfn: kernel debian (not fetched yet), accelerator auto, there is no no-such-qemu; *"]
    )


def test_the_header_of_a_kernel_given_by_path(pytester: pytest.Pytester) -> None:
    vmlinux = pytester.path / "vmlinux"
    vmlinux.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\x3e\0" + bytes(44) + b"Linux version 6.13.0-own (")
    result = pytest_run(pytester, f"--hugepfn-kernel={vmlinux}")
    result.stdout.fnmatch_lines([f"hugepfn: kernel {vmlinux} (6.13.0-own), accelerator auto, QEMU 8.2.1"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--hugepfn-level=p4d", "*--hugepfn-level: invalid choice: 'p4d' (choose from *pte*pmd*pud*"),
        ("--hugepfn-accel=xen", "ERROR: --hugepfn-accel 'xen'; valid values: auto, kvm, tcg"),
    ],
)
def test_an_option_that_does_not_exist_lists_those_that_do(pytester: pytest.Pytester, option: str, words: str) -> None:
    result = pytest_run(pytester, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


def test_the_config_has_the_requested_values(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from pathlib import Path

        from harness.config import MachineConfig
        from harness.plugin.options import config_of

        def test_config(pytestconfig):
            assert config_of(pytestconfig) == MachineConfig(
                kernel="./bzImage", modules=Path("m"), accel="tcg", smp=4, memory_mib=512, cpu="qemu64",
                append=("pti=on", "no5lvl"), ram_dir=Path("/ram"), boot_timeout_s=7.5, guest="host", qemu="q",
            )
        """
    )
    options = (
        "kernel=./bzImage modules=m accel=tcg smp=4 memory=512 cpu=qemu64 ram-dir=/ram boot-timeout=7.5 guest=host "
        "qemu=q"
    )
    args = [f"--hugepfn-{option}" for option in options.split()]
    pytest_run(pytester, *args, "--hugepfn-append=pti=on  no5lvl").assert_outcomes(passed=1)


# --- levels and scenarios ------------------------------------------------------------------------

SCENARIOS = """
    import pytest

    @pytest.mark.levels("pte", "pmd", "pud")
    def test_fork(vm, level):
        print(level.label, level.size_bytes)

    @pytest.mark.levels("pmd")
    def test_thp(vm):
        pass

    def test_any(vm):
        pass
"""
ALL = {"fork pte": "passed", "fork pmd": "passed", "fork pud": "passed", "thp pmd": "passed", "any": "passed"}


@pytest.fixture
def scenarios(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile(SCENARIOS)
    return pytester


def test_a_test_runs_once_per_level(scenarios: pytest.Pytester) -> None:
    result = pytest_run(scenarios, "-v", "-s", "--strict-markers")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["*::test_fork[[]pte[]]*", "*::test_fork[[]pmd[]]*", "*::test_fork[[]pud[]]*"])
    result.stdout.fnmatch_lines(["*pte 4096*", "*pmd 2097152*", "*pud 1073741824*"])
    assert outcomes(scenarios) == ALL


@pytest.mark.parametrize(
    ("args", "kept"),
    [
        (["--hugepfn-level=pmd"], ["fork pmd", "thp pmd", "any"]),
        (["--hugepfn-level=pud", "--hugepfn-level=pte"], ["fork pte", "fork pud", "any"]),
        (["--hugepfn-scenario=fork"], ["fork pte", "fork pmd", "fork pud"]),
        (["--hugepfn-scenario=thp", "--hugepfn-scenario=any"], ["thp pmd", "any"]),
        (["--hugepfn-scenario=fork", "--hugepfn-level=pud"], ["fork pud"]),
    ],
)
def test_level_and_scenario_select(scenarios: pytest.Pytester, args: list[str], kept: list[str]) -> None:
    result = pytest_run(scenarios, *args)
    result.assert_outcomes(passed=len(kept), deselected=len(ALL) - len(kept))
    assert list(outcomes(scenarios)) == kept


def test_an_empty_selection_is_no_success(scenarios: pytest.Pytester) -> None:
    result = pytest_run(scenarios, "--hugepfn-scenario=thp", "--hugepfn-level=pud")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_an_unknown_scenario_is_a_usage_error_with_suggestions(scenarios: pytest.Pytester) -> None:
    result = pytest_run(scenarios, "--hugepfn-scenario=frok")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: no scenario 'frok'; did you mean 'fork'? hugepfn list names them all"])
    result.assert_outcomes()


def test_a_level_of_a_marker_may_be_the_size_of_its_page(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.levels("4K", "2M")
        def test_fork(vm, level): pass

        @pytest.mark.levels("1g")
        def test_thp(vm): pass
        """
    )
    pytest_run(pytester, "--hugepfn-level=pmd", "--hugepfn-level=1G").assert_outcomes(passed=2, deselected=1)
    assert outcomes(pytester) == {"fork pmd": "passed", "thp pud": "passed"}


@pytest.mark.parametrize("marker", ['levels("pte", "pdm")', "levels()", "levels(3)"])
@pytest.mark.parametrize("argument", ["level", "vm"])
def test_an_unknown_level_is_a_usage_error_with_the_valid_ones(
    pytester: pytest.Pytester, marker: str, argument: str
) -> None:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile(f"import pytest\n\n@pytest.mark.{marker}\ndef test_fork({argument}): pass\n")
    result = pytest_run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *::test_fork*: levels(*); valid values: pte, pmd, pud"])
    result.assert_outcomes()
    result.stdout.no_fnmatch_line("*Error*")


# --- outcomes ------------------------------------------------------------------------------------


def test_the_outcome_depends_on_the_cause(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile(
        """
        import pytest

        from harness.errors import ClaimFailed, KernelDied, MachineryError, UsageError

        @pytest.fixture
        def no_qemu():
            raise MachineryError("QEMU is gone")

        @pytest.fixture
        def no_boot():
            raise KernelDied("panic at boot")

        @pytest.fixture
        def no_end():
            yield
            raise MachineryError("QEMU does not end")

        def test_good(vm): pass
        def test_wrong(vm): assert 1 + 1 == 3, "arithmetic"
        def test_claim(vm): raise ClaimFailed("D went")
        def test_died(vm): raise KernelDied("Oops: 0000")
        def test_boot(vm, no_boot): pass
        def test_gave_up(vm): pytest.fail("no")
        def test_premise(vm): pytest.skip("no THP")
        def test_machinery(vm): raise MachineryError("QEMU is gone")
        def test_usage(vm): raise UsageError("no such program")
        def test_typo(vm): raise KeyError("typo")
        def test_setup(vm, no_qemu): pass
        def test_teardown(vm, no_end): pass
        def test_wrong_and_teardown(vm, no_end): assert 1 + 1 == 3, "arithmetic"
        def test_host_only(): raise KeyError("nobody's business")
        """
    )
    result = pytest_run(pytester)
    assert outcomes(pytester) == {
        "good": "passed",
        "wrong": "failed",
        "claim": "failed",
        "died": "failed",
        "boot": "failed",
        "gave_up": "failed",
        "premise": "skipped",
        "machinery": "error",
        "usage": "error",
        "typo": "error",
        "setup": "error",
        "teardown": "error",
        "wrong_and_teardown": "failed",
    }
    reasons = {one["scenario"]: one["reason"] for one in written(pytester)["results"]}
    assert (reasons["good"], reasons["premise"], reasons["died"]) == ("", "no THP", "Oops: 0000")
    assert reasons["machinery"] == reasons["setup"] == "QEMU is gone"
    assert reasons["wrong"].startswith("arithmetic")
    result.stdout.fnmatch_lines(["Oops: 0000"])
    result.stdout.no_fnmatch_line('*raise KernelDied("Oops*')


def test_a_parametrised_scenario_has_a_result_for_each_parameter(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def bad_end(memory):
            yield
            assert memory != "thp"

        @pytest.mark.parametrize("memory", ["anon", "thp"])
        def test_fork(vm, memory, bad_end): pass
        """
    )
    pytest_run(pytester)
    assert [one["outcome"] for one in written(pytester)["results"]] == ["passed", "failed"]


def test_a_test_of_a_shared_machine_has_a_result_too(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest\n\n@pytest.fixture\ndef live_vm(): return None\n")
    pytester.makepyfile("def test_shared(live_vm): assert False\n\ndef test_other(live_vm): pass\n")
    pytest_run(pytester)
    assert outcomes(pytester) == {"shared": "failed", "other": "passed"}


# --- claims --------------------------------------------------------------------------------------


def test_all_claims_are_made_and_the_test_fails_at_its_end(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile(
        """
        def test_fork(vm, claim):
            with claim("D is kept", by="copy_huge_pud()"):
                assert "D" == "SAVED_DIRTY", "moved"
            with claim("W is kept"):
                pass
            with claim("the pfn is the same", by="copy_huge_pud()"):
                assert 1 == 2, "another"
            print("the end was reached")
        """
    )
    result = pytest_run(pytester, "-s")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the end was reached*", "BROKEN D is kept [[]copy_huge_pud()[]]", "*moved: *"])
    (one,) = written(pytester)["results"]
    assert one["outcome"] == "failed"
    assert [(claim["name"], claim["outcome"], claim["kernel_function"]) for claim in one["claims"]] == [
        ("D is kept", "failed", "copy_huge_pud()"),
        ("W is kept", "passed", ""),
        ("the pfn is the same", "failed", "copy_huge_pud()"),
    ]
    moved, held, another = (claim["message"] for claim in one["claims"])
    assert "moved" in moved
    assert held == ""
    assert "another" in another
    assert one["reason"] == "", "a failed test has no reason of its own: its claims tell it"


def test_claims_that_hold(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile("def test_fork(vm, claim):\n    with claim('holds'): pass\n")
    pytest_run(pytester).assert_outcomes(passed=1)
    assert outcomes(pytester) == {"fork": "passed"}


LEDGER = """
[[bug]]
id = "HP-7"
title = "D is lost"
scenario = "fork"
levels = ["pud"]
function = "mm/huge_memory.c copy_huge_pud()"
reproduce = "hugepfn run fork --level pud"
[[bug.symptom]]
claim = "D is kept"
subject = "other"
got = "0"
"""
BUGGY = """
    import pytest

    @pytest.mark.levels("pmd", "pud")
    def test_fork(vm, level, claim):
        with claim("D is kept"):
            assert {d} == 1
        with claim("W is kept"):
            assert {other}
"""


@pytest.mark.parametrize(
    ("d", "other", "pud"),
    [
        ("0", "True", ("known_bug", [{"id": "HP-7", "title": "D is lost"}])),
        ("2", "True", ("failed", [])),
        ("0", "False", ("failed", [])),
    ],
)
def test_a_known_bug_is_recognised_by_its_symptom_and_hides_nothing_else(
    pytester: pytest.Pytester, d: str, other: str, pud: tuple[str, list[dict[str, str]]]
) -> None:
    pytester.makeconftest(NO_MACHINE)
    (pytester.path / "known_bugs.toml").write_text(LEDGER)
    pytester.makepyfile(BUGGY.format(d=d, other=other))
    result = pytest_run(pytester)
    results = {one["level"]: one for one in written(pytester)["results"]}
    assert results["pmd"]["outcome"] == "failed", "the list of known bugs has it for pud only"
    assert (results["pud"]["outcome"], results["pud"]["known_bugs"]) == pud
    known = pud[0] == "known_bug"
    assert results["pud"]["claims"][0]["outcome"] == pud[0]
    result.assert_outcomes(failed=1 if known else 2, xfailed=1 if known else 0)


@pytest.mark.parametrize(
    ("times", "outcome"), [(1, "passed"), (2, "error")], ids=["once is run again", "twice is an error"]
)
def test_a_test_that_a_bug_of_qemu_ended_runs_once_more(
    pytester: pytest.Pytester, machines: list[FakeVM], times: int, outcome: str
) -> None:
    pytester.makepyfile(
        f"""
        from harness.errors import EmulatorError
        tries = []

        def test_race(vm, claim):
            tries.append(vm)
            with claim("the mapper gets its leaf"):
                assert len(tries) > 1
            if len(tries) <= {times}:
                raise EmulatorError("the kernel died at a breakpoint that is not in its memory")

        def test_next(vm):
            pass
        """
    )
    result = pytest_run(pytester)
    assert outcomes(pytester) == {"race": outcome, "next": "passed"}
    assert [machine.closed for machine in machines] == [True, True, True], "a machine of its own for each try"
    again = [line for line in result.stderr.lines if line.startswith("hugepfn: running test_race again: the kernel")]
    assert len(again) == 1
    assert [one["name"] for one in written(pytester)["results"][0]["claims"]] == ["the mapper gets its leaf"]


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    ("seen", "fixed"),
    [
        ('[HP-7.present]\n"6.12.100" = 2026-11-01\n', [{"id": "HP-7", "version": "6.12.100"}]),
        ('[HP-7.present]\n"6.1.192" = 2026-11-01\n', []),  # another series: this kernel never had the bug
        ('[HP-7.present]\n"6.12.118" = 2026-11-01\n', []),
        ("", []),
    ],
)
def test_a_known_bug_is_fixed_only_if_an_older_kernel_had_it(
    pytester: pytest.Pytester, seen: str, fixed: list[dict[str, str]]
) -> None:
    (pytester.path / "known_bugs.toml").write_text(LEDGER.replace("pud", "pmd"))
    (pytester.path / "known_bugs_seen.toml").write_text(seen)
    pytester.makepyfile(BUGGY.format(d="1", other="True"))
    pytest_run(pytester, "--hugepfn-level=pmd").assert_outcomes(passed=1, deselected=1)
    assert [one["fixed_bugs"] for one in written(pytester)["results"]] == [fixed]


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize("measured", ["6.12.117", "6.12.100"])  # this kernel, and an older one
def test_a_known_bug_that_was_measured_absent_is_a_failure(pytester: pytest.Pytester, measured: str) -> None:
    (pytester.path / "known_bugs.toml").write_text(LEDGER.replace("pud", "pmd"))
    (pytester.path / "known_bugs_seen.toml").write_text(f'[HP-7.absent]\n"{measured}" = 2026-11-01\n')
    pytester.makepyfile(BUGGY.format(d="0", other="True"))
    result = pytest_run(pytester, "--hugepfn-level=pmd")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines([f"this looks like HP-7, but {measured} was measured without HP-7 on 2026-11-01"])
    (one,) = written(pytester)["results"]
    assert one["returned_bugs"] == [{"id": "HP-7", "version": measured, "date": "2026-11-01"}]
    assert (one["outcome"], one["claims"][0]["outcome"], one["known_bugs"]) == ("failed", "failed", [])


def test_an_invalid_file_of_sightings_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_MACHINE)
    (pytester.path / "known_bugs_seen.toml").write_text('[HP-7.present]\n"6.12.100" = true\n')
    pytester.makepyfile("def test_fork(vm): pass")
    result = pytest_run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*known_bugs_seen.toml: HP-7: 6.12.100 = True; expected a day*"])


def test_an_invalid_list_of_known_bugs_is_a_usage_error(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_MACHINE)
    (pytester.path / "known_bugs.toml").write_text(LEDGER.replace("[[bug.symptom]]", "[[bug.sign]]"))
    pytester.makepyfile("def test_fork(vm): pass")
    result = pytest_run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*the list of known bugs, entry HP-7*not understood*"])


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("smp=2", "2 () True pci-testdev"),
        ("append=['x=1'], clone=False", "1 ('x=1',) False pci-testdev"),
        ("device='nvme'", "1 () True nvme"),
        ("load=('dax_pmem',), memory_mib=4096", "1 () True pci-testdev ('dax_pmem',) 4096"),
        ("memory_mib=512", "1 () True pci-testdev () 1024"),
    ],
)
def test_a_test_may_request_a_machine(pytester: pytest.Pytester, marker: str, expected: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        from harness.plugin.fixtures import _config_for

        @pytest.mark.machine({marker})
        def test_wish(request):
            found = _config_for(request.node)
            seen = (found.smp, found.append, found.clone, found.device, found.load, found.memory_mib)
            assert " ".join(map(str, seen)).startswith("{expected}")
        """
    )
    pytest_run(pytester).assert_outcomes(passed=1)


def test_a_skip_does_not_hide_a_broken_claim(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile(
        """
        import pytest

        def test_fork(vm, claim):
            with claim("D is kept"):
                assert False, "moved"
            pytest.skip("no THP for the rest")

        def test_other(vm, claim):
            with claim("holds"):
                pass
            pytest.skip("no THP for the rest")
        """
    )
    pytest_run(pytester).assert_outcomes(failed=1, skipped=1)
    assert outcomes(pytester) == {"fork": "failed", "other": "skipped"}


# --- with a machine ------------------------------------------------------------------------------

IMAGE = KernelImage(
    spec="debian:6.12",
    image=Path("/k/vmlinuz"),
    kind=ImageKind.BZIMAGE,
    release="6.12.117-cloud-amd64",
    modules_dir=None,
    config=Kconfig("CONFIG_ARCH_SUPPORTS_PMD_PFNMAP=y\n"),
)
STOP = stop("forked", child=leaf(DIRTY))
(SEEN,) = STOP.observations()
HELD = {"was": None, "outcome": "passed", "message": "", "mismatch": None}  # a claim, in JSON


class FakeVM:
    """The part of a machine that the plugin needs, and a program that was seen at one stop."""

    started: list[FakeVM]
    log_lines = 3
    emulator: Any = None
    children = b""

    def __init__(self, image: KernelImage, config: MachineConfig, *, search: list[Path], say: Say) -> None:  # noqa: ARG002
        self.config, self.image, self.search = config, image, search
        self.spec = SimpleNamespace(
            accel=Accel.TCG, kernel=image.image, why_not_saved="QEMU cannot save it", device=Device(config.device)
        )
        self.agent = SimpleNamespace(get=lambda _path: self.children)
        self.qemu = SimpleNamespace(binary=find_qemu())
        self.runs: list[SimpleNamespace] = []
        self.origin = Origin.BOOT
        self.waived: dict[Invariant, str] = {}
        self.expected_complaints: tuple[str, ...] = ()
        self.outside: list[KernelTroubles] = []
        self.ended = False
        self.running = True
        self.probed = True
        self.closed = False
        self.on_failure: Callable[[FakeVM], None] | None = None
        self.caps = Capabilities(probe_image(image), True, True, True, False, "always", True)

    def run(self, *, violation: str = "", trouble: str = "", gap: str = "", uncalibrated: str = "") -> None:
        """Pretend that a program was run."""
        violations = [Violation(Invariant.BAR_PFN, "forked", "parent", "bar", violation)] if violation else []
        disagreement = Violation(Invariant.SAME_PFN, "forked", "parent", "calibration", uncalibrated)
        complaints = (KernelComplaint(ComplaintKind.BUG, trouble, title=trouble),) if trouble else ()
        troubles = without_expected(KernelTroubles(complaints, gap=gap), self.expected_complaints, Taint(0))
        self.runs.append(
            SimpleNamespace(
                snapshots=[STOP],
                hung=None,
                hang_report=None,
                ended=None,
                job=SimpleNamespace(stdout=b"1..1\n", stderr=b""),
                violations=violations,
                broken=[one for one in violations if one.invariant not in self.waived],
                uncalibrated=[disagreement] if uncalibrated else [],
                kernel_troubles=lambda: troubles,
                log="".join(f"line {number}\n" for number in range(self.log_lines)),
            )
        )

    def exec(self, *, trouble: str) -> None:
        """Pretend that a command made the kernel complain."""
        complaints = (KernelComplaint(ComplaintKind.WARNING, trouble, title=trouble),)
        self.outside.append(without_expected(KernelTroubles(complaints), self.expected_complaints, Taint(0)))

    def begin_test(self) -> None:
        pass

    def end_test(self) -> None:
        self.ended = True

    def kernel_troubles(self) -> tuple[KernelTroubles, ...]:
        return (*(run.kernel_troubles() for run in self.runs), *(self.outside if self.ended else ()))

    def check_kernel(self) -> None:
        if found := [line for one in self.kernel_troubles() for line in words.troubles(one)]:
            raise RunBroken("\n".join(found))

    def start(self) -> FakeVM:
        self.started.append(self)
        return self

    def close(self) -> None:
        self.closed = True

    def on_loop(self, answer: bytes) -> bytes:
        return answer


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> list[FakeVM]:
    """The machines that the session started."""

    def resolve(_config: MachineConfig, say: Say) -> KernelImage:
        say("fetching the kernel")
        say("fetching the kernel")
        return IMAGE

    FakeVM.started = []
    monkeypatch.setattr(preparation, "resolve", resolve)
    monkeypatch.setattr(fixtures, "VM", FakeVM)
    return FakeVM.started


def test_each_test_has_its_own_machine_and_it_is_closed(pytester: pytest.Pytester, machines: list[FakeVM]) -> None:
    pytester.makepyfile(
        """
        def test_one(vm): assert not vm.closed
        def test_two(vm, caps): assert caps is vm.caps
        def test_three(live_vm): live_vm.run()
        def test_four(live_vm): assert live_vm.runs
        """
    )
    result = pytest_run(pytester, "--hugepfn-smp=2", "--hugepfn-append=pti=on")
    result.assert_outcomes(passed=4)
    assert [machine.closed for machine in machines] == [True, True, True]
    assert {machine.config for machine in machines} == {
        MachineConfig("debian", smp=2, append=("pti=on",), qemu=os.environ["HUGEPFN_QEMU"])
    }
    assert machines[0].search == [pytester.path], "programs beside the test are found first"
    assert result.stderr.lines.count("hugepfn: fetching the kernel") == 1, (
        "the progress line is printed once, despite pytest's capture"
    )


@pytest.mark.usefixtures("machines")
def test_a_bit_that_only_the_cpu_decides_is_no_failure(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from dataclasses import replace
        from harness.pagetable import Bits

        def test_fork(vm, claim):
            vm.caps = replace(vm.caps, early=Bits.A)
            with claim("the child's entry is old", clear=Bits.A):
                assert False, "A=1"
            with claim("the child's entry is writable"):
                pass
        """
    )
    pytest_run(pytester).assert_outcomes(passed=1)
    (result,) = (one for one in written(pytester)["results"] if one["scenario"] == "fork")
    claims = {claim["name"]: claim["outcome"] for claim in result["claims"]}
    assert claims["the child's entry is old"] == "skipped"
    assert claims["the child's entry is writable"] == "passed"


@pytest.mark.parametrize("uncalibrated", ["", "page 3: the walk found D, pagemap a hole"])
@pytest.mark.usefixtures("machines")
def test_with_an_unreliable_walk_no_claim_is_known(pytester: pytest.Pytester, uncalibrated: str) -> None:
    """A failing claim is then an error, whatever else ended the test. A claim that held stays as it is."""
    pytester.makepyfile(
        f"""
        def test_fork(vm, claim):
            vm.run(uncalibrated={uncalibrated!r})
            with claim("the child's entry is old"):
                assert False, "A=1"
            with claim("the child's entry is writable"):
                pass
        """
    )
    pytest_run(pytester)
    (result,) = (one for one in written(pytester)["results"] if one["scenario"] == "fork")
    claims = {claim["name"]: claim["outcome"] for claim in result["claims"]}
    assert claims["the child's entry is old"] == ("error" if uncalibrated else "failed")
    assert claims["the child's entry is writable"] == "passed"
    assert result["outcome"] == ("error" if uncalibrated else "failed")


@pytest.mark.usefixtures("machines")
def test_an_assertion_about_an_unreliable_walk_is_no_verdict(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_fork(vm):
            vm.run(uncalibrated="page 3: the walk found D, pagemap a hole")
            assert False, "A=1"
        """
    )
    pytest_run(pytester)
    (result,) = written(pytester)["results"]
    assert result["outcome"] == "error"
    reason = "the walk and pagemap disagree, so the walk proves nothing: "
    assert result["reason"].startswith(reason)
    assert "page 3: the walk found D" in result["reason"]


@pytest.mark.parametrize(("asked", "outcome"), [("pci-testdev", "passed"), ("ivshmem-plain", "skipped")])
@pytest.mark.usefixtures("machines")
def test_a_live_machine_may_have_the_replacement_device(pytester: pytest.Pytester, asked: str, outcome: str) -> None:
    """The test requests pci-testdev. The machine was started with ``asked`` and has ivshmem-plain."""
    live: Any = FakeVM(IMAGE, DEFAULT, search=[], say=print)
    live.spec = SimpleNamespace(smp=1, append=(), device=Device.SHMEM, root=Root.INITRAMFS, accel=Accel.KVM)
    live.spec.kernel, live.asked_device = IMAGE.image, asked
    live.spec.memory_mib, live.spec.load = 1024, ()
    live.kernel_log = ""
    live.kernel, live.programs = IMAGE, SimpleNamespace(add_search=lambda _folder: None)

    class Lending:
        def pytest_configure(self, config: pytest.Config) -> None:
            fixtures.set_machine(config, live)

    pytester.makepyfile("def test_fork(vm): pass")
    pytest_run(pytester, further=[Lending()]).assert_outcomes(**{outcome: 1})


@pytest.mark.usefixtures("machines")
def test_a_machine_that_this_host_cannot_provide_is_a_skip(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enter(_vm: FakeVM) -> FakeVM:
        raise CannotKnow("under KVM this host does not set D in an entry of nvme's BAR")

    monkeypatch.setattr(FakeVM, "start", enter)
    pytester.makepyfile("def test_reset(vm): pass")
    pytest_run(pytester).assert_outcomes(skipped=1)
    (result,) = written(pytester)["results"]
    assert result["outcome"] == "skipped"
    assert result["cannot_know"] is True


def test_a_kernel_that_cannot_have_the_guest_is_skipped_without_a_boot(
    pytester: pytest.Pytester, machines: list[FakeVM]
) -> None:
    pytester.makepyfile(
        """
        import pytest

        def test_plain(vm): pass
        @pytest.mark.machine(guest="host")
        def test_host(vm): pass
        """
    )
    result = pytest_run(pytester, "-rs")
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*--guest host: debian:6.12 *CONFIG_9P_FS*CONFIG_VIRTIO_FS*"])
    assert len(machines) == 1
    pytest_run(pytester, "--hugepfn-guest=host").assert_outcomes(skipped=2)
    pytest_run(pytester, "--hugepfn-guest=host", "--hugepfn-strict").assert_outcomes(errors=2)


@pytest.mark.usefixtures("machines")
def test_a_machine_that_cannot_be_kept_has_a_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_fork(vm, claim):\n    with claim('holds', by='f()'): assert False\n")
    result = pytest_run(pytester, "--hugepfn-keep-vm")
    result.assert_outcomes(failed=1)
    result.stderr.fnmatch_lines(["hugepfn: the machine of test_fork is not kept: QEMU cannot save it"])


def test_a_level_that_this_kernel_cannot_have_is_skipped_without_a_boot(
    scenarios: pytest.Pytester, machines: list[FakeVM]
) -> None:
    (scenarios.path / "conftest.py").unlink()
    pytest_run(scenarios).assert_outcomes(passed=4, skipped=1)
    assert outcomes(scenarios) == ALL | {"fork pud": "skipped"}
    (skipped,) = [one for one in written(scenarios)["results"] if one["outcome"] == "skipped"]
    assert skipped["reason"] == "no huge pfnmap in this kernel: CONFIG_ARCH_SUPPORTS_PUD_PFNMAP is not set"
    assert len(machines) == 4


def test_a_level_that_turns_out_impossible_after_the_boot(
    scenarios: pytest.Pytester, machines: list[FakeVM], monkeypatch: pytest.MonkeyPatch
) -> None:
    (scenarios.path / "conftest.py").unlink()
    monkeypatch.setattr(Capabilities, "why_not", lambda _self, level: f"tried: no {level.label}")
    result = pytest_run(scenarios, "--hugepfn-scenario=fork", "--hugepfn-level=pmd")
    result.assert_outcomes(skipped=1, deselected=4)
    assert written(scenarios)["results"][0]["reason"] == "tried: no pmd"
    assert [machine.closed for machine in machines] == [True]


def test_strict_fails_on_an_unmet_precondition(scenarios: pytest.Pytester, machines: list[FakeVM]) -> None:
    (scenarios.path / "conftest.py").unlink()
    result = pytest_run(scenarios, "--hugepfn-strict", "--hugepfn-scenario=fork", "--hugepfn-level=pud")
    result.assert_outcomes(errors=1, deselected=4)
    (one,) = written(scenarios)["results"]
    assert (one["outcome"], machines) == ("failed", [])
    assert one["reason"].startswith("precondition not met: no huge pfnmap in this kernel: ")


@pytest.mark.usefixtures("machines")
def test_the_results_file_has_the_context_and_the_observations(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_fork(vm, claim):\n    vm.run()\n    with claim('holds', by='f()'): pass\n")
    pytest_run(pytester, "--hugepfn-smp=2", "--hugepfn-append=pti=on no5lvl", "--hugepfn-accel=auto")
    data = written(pytester)
    results, date, capabilities = data.pop("results"), data.pop("date"), data.pop("capabilities")
    assert data == {
        "schema": "hugepfn-run",
        "version": 3,
        "kernel": {
            "spec": "debian:6.12",
            "release": "6.12.117-cloud-amd64",
            "config_hash": IMAGE.config_hash,
            "tree": None,
        },
        "accel": "tcg",
        "qemu": "8.2.1",
        "origin": "boot",
        "image": "vmlinuz",
        "smp": 2,
        "append": ["pti=on", "no5lvl"],
        "guest": "initramfs",
    }
    assert date.endswith("+00:00")
    assert capabilities["pfnmap_levels"] == ["pmd"]
    assert results == [
        {
            "scenario": "fork",
            "file": str(next(pytester.path.glob("test_*.py"))),
            "level": None,
            "outcome": "passed",
            "was": None,
            "reason": "",
            "end": None,
            "cannot_know": False,
            "claims": [
                {**HELD, "kind": "scenario", "name": "holds", "kernel_function": "f()", "checkpoint": "forked"},
                {**HELD, "kind": "invariants", "name": "", "kernel_function": "", "checkpoint": ""},
            ],
            "stops": 1,
            "violations": [],
            "waived": [],
            "kernel": [{"complaints": [], "taint": 0, "excused": [], "gap": "", "expected": []}],
            "known_bugs": [],
            "fixed_bugs": [],
            "returned_bugs": [],
            "expectations": [],
            "evidence": "",
            "observations": [SEEN.to_json()],
            "log": ["line 0", "line 1", "line 2"],
        }
    ]


@pytest.mark.usefixtures("machines")
def test_the_middle_of_a_long_log_is_left_out(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeVM, "log_lines", LOG_LINES_MAX + 10)
    pytester.makepyfile("def test_fork(vm):\n    vm.run()\n")
    pytest_run(pytester)
    log = written(pytester)["results"][0]["log"]
    half = LOG_LINES_MAX // 2
    assert log[:half] == [f"line {number}" for number in range(half)]
    assert log[half] == "... 10 lines ..."
    assert log[half + 1 :] == [f"line {number}" for number in range(half + 10, LOG_LINES_MAX + 10)]


def test_a_kernel_that_does_not_boot_is_not_booted_for_every_test(
    pytester: pytest.Pytester, machines: list[FakeVM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(vm: FakeVM) -> FakeVM:
        vm.started.append(vm)
        raise BootError("it does not boot", exit_status=None, console_tail="[ 0.1] a\n[ 0.2] panic")

    monkeypatch.setattr(FakeVM, "start", refuse)
    pytester.makepyfile("".join(f"def test_{number}(vm): pass\n" for number in range(5)))
    pytest_run(pytester)
    results = written(pytester)["results"]
    assert [(one["outcome"], one["reason"]) for one in results] == [("failed", "it does not boot")] * 5
    assert [one["log"] for one in results] == [["[ 0.1] a", "[ 0.2] panic"]] * 5
    assert len(machines) == BOOT_ATTEMPTS


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    ("what", "outcome", "message"),
    [
        ("violation='expected 5'", "failed", "pfn is BAR + offset: at 'forked', expected 5"),
        ("trouble='BUG: Bad page map'", "failed", "the kernel log: BUG: Bad page map"),
        ("gap='a gap of 7 records'", "error", "a gap of 7 records"),
        ("gap='a gap of 7 records', trouble='a BUG'", "failed", "the kernel log: a BUG"),
    ],
)
def test_invariants_and_the_kernel_log_are_a_claim_of_every_scenario(
    pytester: pytest.Pytester, what: str, outcome: str, message: str
) -> None:
    pytester.makepyfile(f"def test_fork(vm):\n    vm.run({what})\n")
    pytest_run(pytester)
    (result,) = Run.from_json(written(pytester)).results
    ((claim, name, said),) = words.claims(result)
    assert (claim.kind, claim.outcome.value, said) == (ClaimKind.INVARIANTS, outcome, message)
    assert name == "the invariants held at 1 stop, and the kernel log has no complaint"


WAIVING = """
    import pytest

    @pytest.mark.waive({waived})
    def test_fork(vm):
        vm.run(violation="expected 5")
"""
PFN = "'pfn is BAR + offset', reason='two BARs'"
TOLD = "pfn is BAR + offset: two BARs (broken once, first expected 5)"


@pytest.mark.usefixtures("machines")
def test_a_waived_invariant_is_shown_with_its_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(WAIVING.format(waived=PFN))
    pytest_run(pytester, "--junitxml=junit.xml").assert_outcomes(passed=1)
    (one,) = written(pytester)["results"]
    assert (one["outcome"], one["waived"]) == ("passed", [{"invariant": "bar_pfn", "reason": "two BARs"}])
    assert [violation["message"] for violation in one["violations"]] == ["expected 5"]
    assert one["claims"][0]["outcome"] == "passed"
    assert f'<property name="waived" value="{TOLD}" />' in (pytester.path / "junit.xml").read_text()


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    ("waived", "words"),
    [
        ("'pfn is BAR', reason='x'", "*no invariant is called 'pfn is BAR'; valid names:*"),
        ("'pfn is BAR', reason='x'", "*  every leaf of a pfnmap is special*"),
        ("reason='x'", "*names no invariant*"),
        ("'pfn is BAR + offset'", "*waive() needs a reason: waive('pfn is BAR + offset', reason=*"),
        ("'pfn is BAR + offset', reason=' '", "*waive() needs a reason*"),
    ],
)
def test_an_invalid_waiver_is_a_usage_error(pytester: pytest.Pytester, waived: str, words: str) -> None:
    pytester.makepyfile(WAIVING.format(waived=waived))
    result = pytest_run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


COMPLAINING = """
    import pytest

    @pytest.mark.expect_complaint({titles})
    def test_fork(vm):
        {body}
"""
COMPLAINS = "the kernel complains: WARNING in f"


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    ("titles", "body", "outcome", "message"),
    [
        ("'WARNING in f'", "vm.run(trouble='WARNING in f')", "passed", ""),
        ("'WARNING in f'", "vm.exec(trouble='WARNING in f')", "passed", ""),
        ("'WARNING in f'", "vm.run()", "failed", "the kernel log has none of this title; it has no complaint"),
        (
            "'WARNING in f'",
            "vm.run(trouble='WARNING in g')",
            "failed",
            "the kernel log has none of this title; it has 'WARNING in g'",
        ),
        ("'WARNING in f'", "vm.run(gap='a gap')", "error", "a gap"),
        ("'WARNING in f'", "vm.run(trouble='WARNING in f', gap='a gap')", "passed", ""),
    ],
)
def test_an_expected_complaint_is_a_claim(
    pytester: pytest.Pytester, titles: str, body: str, outcome: str, message: str
) -> None:
    pytester.makepyfile(COMPLAINING.format(titles=titles, body=body))
    pytest_run(pytester)
    (result,) = Run.from_json(written(pytester)).results
    (claim,) = (one for one in result.claims if one.kind is ClaimKind.SCENARIO)
    assert (claim.name, claim.outcome.value, claim.message) == (COMPLAINS, outcome, message)
    assert result.outcome.value == ("failed" if outcome == "failed" else "passed")
    if outcome == "passed":
        assert [one.title for seen in result.kernel for one in seen.expected] == ["WARNING in f"]


@pytest.mark.usefixtures("machines")
def test_another_complaint_than_the_expected_one_fails(pytester: pytest.Pytester) -> None:
    body = "vm.run(trouble='WARNING in f'); vm.exec(trouble='WARNING in g')"
    pytester.makepyfile(COMPLAINING.format(titles="'WARNING in f'", body=body))
    result = pytest_run(pytester)
    result.assert_outcomes(failed=1)
    (one,) = Run.from_json(written(pytester)).results
    assert [(claim.name, claim.outcome.value) for claim in one.claims] == [("", "failed"), (COMPLAINS, "passed")][::-1]
    ((name, said),) = ((name, said) for claim, name, said in words.claims(one) if not claim.name)
    assert (name, said) == (
        "the invariants held at 1 stop, and the kernel log has no other complaint",
        "the kernel log: WARNING in g",
    )
    assert one.end is None, "the claim about the kernel's log tells the reason"


@pytest.mark.usefixtures("machines")
def test_a_complaint_outside_of_every_program_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_fork(vm): vm.exec(trouble='WARNING in g')")
    pytest_run(pytester).assert_outcomes(failed=1)
    (one,) = Run.from_json(written(pytester)).results
    assert words.failed(one) == ["the kernel log: WARNING in g"]


@pytest.mark.usefixtures("machines")
@pytest.mark.parametrize(
    ("titles", "words"),
    [
        ("", "*expect_complaint() takes titles as `hugepfn dmesg` gives them: *"),
        ("' '", "*expect_complaint() takes titles*"),
        ("'WARNING in f', reason='x'", "*expect_complaint() takes titles*"),
        ("512", "*expect_complaint() takes titles*"),
    ],
)
def test_an_invalid_expected_complaint_is_a_usage_error(pytester: pytest.Pytester, titles: str, words: str) -> None:
    pytester.makepyfile(COMPLAINING.format(titles=titles, body="vm.run()"))
    result = pytest_run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([words])


def test_a_complaint_is_expected_of_a_machine(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(COMPLAINING.format(titles="'WARNING in f'", body="pass").replace("(vm)", "()"))
    result = pytest_run(pytester)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*expect_complaint() is for tests that take the fixture vm*"])


@pytest.mark.usefixtures("machines")
def test_a_broken_claim_shows_the_entries(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_fork(vm, claim):\n    vm.run()\n    with claim('clean'): assert False, 'dirty'\n")
    pytest_run(pytester)
    message = written(pytester)["results"][0]["claims"][0]["message"]
    assert message.startswith("dirty")
    assert message.endswith(f"  forked  child  bar+0x0  pmd  {SEEN.raw:#018x}  P W U PCD A D PSE SPECIAL NX")


# --- expectations --------------------------------------------------------------------------------

EXPECTING = """
    import pytest

    @pytest.mark.levels("pte", "pmd")
    def test_fork(vm, level, claim):
        with claim("it holds"):
            assert True
        with claim("keeps D"):
            assert level.label == "pte"

    def test_any(vm): pass
    def test_no(vm): pytest.skip("no THP")
    def test_plain(): assert not 1
"""


@pytest.fixture
def expecting(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeconftest(NO_MACHINE)
    pytester.makepyfile(EXPECTING)
    return pytester


def test_an_expected_failure_does_not_fail_the_session(expecting: pytest.Pytester) -> None:
    (expecting.path / "said").write_text("# by the patch\nno=skip\n\nplain=fail\n")
    said = ("--hugepfn-expect=fork:2M:keeps D=fail", "--hugepfn-expect-file=said", "--hugepfn-expect=any=pass")
    result = pytest_run(expecting, *said, "--junitxml=out.xml", "-rx")
    assert result.ret == 0
    result.assert_outcomes(passed=2, xfailed=3)
    result.stdout.fnmatch_lines(["XFAIL *test_fork[[]pmd[]]* - expected (failed): 1 claim does not hold: keeps D"])
    found = {"fork pte": "passed", "fork pmd": "expected", "any": "passed", "no": "expected"}
    assert outcomes(expecting) == found
    (fork,) = [one for one in written(expecting)["results"] if (one["scenario"], one["level"]) == ("fork", "pmd")]
    assert (fork["was"], [(one["outcome"], one["was"]) for one in fork["claims"]]) == (
        *("failed", [("passed", None), ("expected", "failed")]),
    )
    assert fork["expectations"] == [
        {
            **{"test": "fork", "level": "pmd", "claim": "keeps D", "expected": "fail"},
            **{"answer": "met", "found": "failed"},
        }
    ]
    xml = (expecting.path / "out.xml").read_text()
    assert 'type="pytest.xfail" message="expected (failed): 1 claim does not hold: keeps D"' in xml


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "fork:pte=fail",
            "'fork:pte=fail' is not met: expected it to fail, but it passed; remove the expectation*",
        ),
        ("no=pass", "'no=pass' is not met: expected it to pass, but it was skipped; *"),
        ("fork:pmd:keps D=fail", "*there is no claim of this name; did you mean 'keeps D'? *"),
    ],
)
@pytest.mark.parametrize("bisect", [False, True])
def test_an_unmet_expectation_fails_the_test(expecting: pytest.Pytester, said: str, line: str, bisect: bool) -> None:
    test = f"--hugepfn-scenario={said.partition('=')[0].replace(':keps D', '')}"
    result = pytest_run(
        expecting, test, f"--hugepfn-expect={said}", "--junitxml=out.xml", *(["--hugepfn-bisect"] * bisect)
    )
    assert result.ret == 1
    result.assert_outcomes(failed=1, deselected=4)
    result.stdout.fnmatch_lines([line])
    assert "is not met" in (expecting.path / "out.xml").read_text()


def test_an_expected_failure_is_good_for_git(expecting: pytest.Pytester) -> None:
    result = pytest_run(expecting, "--hugepfn-scenario=fork", "--hugepfn-expect=fork:pmd=fail", "--hugepfn-bisect")
    assert result.ret == 0
    result.stderr.fnmatch_lines(["hugepfn: good: 1 of 2 passed, 1 as expected"])


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (
            "--hugepfn-expect=frok=fail",
            "ERROR: 'frok=fail' is expected of no test that was selected; did you mean *",
        ),
        ("--hugepfn-expect=fork", "ERROR: 'fork': an expectation ends in =pass*"),
        ("--hugepfn-expect-file=none", "ERROR: none cannot be read: No such file or directory"),
    ],
)
def test_an_invalid_expectation_runs_nothing(expecting: pytest.Pytester, said: str, line: str) -> None:
    result = pytest_run(expecting, said)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([line])
    assert "passed" not in result.stdout.str()
