"""Runs the reproducers on kernels that have a bug and on others, as guest_tests/known_bugs_seen.toml says."""

from __future__ import annotations

import functools
import subprocess
from pathlib import Path

import pytest

from harness.kernel import Kernel
from harness.verdict.seen import Facts, parse_facts

from .conftest import ROOT, Command

FACTS = parse_facts((ROOT / "guest_tests/known_bugs_seen.toml").read_text())
BUGS = sorted(file.stem for file in (ROOT / "reproducers").glob("*.c"))
DEBUG_ALONE = ("HP-012", "HP-013")  # only a kernel with CONFIG_DEBUG_VM shows them
RACES = ("HP-014", "HP-015")  # "FINE" proves nothing
DEVDAX = ("--memory", "4096", "--append", "memmap=2G!4G", "--load", "nd_e820 nd_pmem dax_pmem device_dax")
NEEDS = {"HP-017": ("--nested",), "HP-021": DEVDAX, "HP-022": DEVDAX}
KERNELS = ("debian:6.1", "debian:6.12", "debian:6.18", "debian:7.3")
BROKEN, FINE = 1, 0


@functools.cache
def release(spec: str) -> str:
    return Kernel.parse(spec).resolve().release


def expected(bug: str, spec: str, facts: Facts) -> int:
    """What a reproducer says on a kernel, as far as it was measured."""
    seen = facts.bugs[bug]
    version = facts.version_of(release(spec)).partition("+")[0]
    if version in seen.present:
        return BROKEN
    if version in seen.absent:
        return FINE
    pytest.skip(f"{bug} was not looked for on {version}")


def check(bug: str, spec: str, folder: Path, hugepfn: Command) -> None:
    wanted = expected(bug, spec, FACTS)
    program = folder / bug
    source = ROOT / f"reproducers/{bug}.c"
    subprocess.run(["gcc", "-static", "-pthread", "-o", program, source], check=True, timeout=120)
    done = hugepfn("exec", "--kernel", spec, "--smp", "2", *NEEDS.get(bug, ()), str(program), "{bdf}")
    said = done.stdout + done.stderr
    assert ("the kernel died: " in said) or ("BROKEN: " in said) or ("FINE: " in said), said
    assert done.returncode == wanted, said


@pytest.mark.parametrize("bug", ["HP-003", "HP-005", "HP-009", "HP-010", "HP-017", "HP-018", "HP-020"])
def test_a_reproducer_knows_a_broken_kernel_from_a_mended_one(bug: str, tmp_path: Path, hugepfn: Command) -> None:
    check(bug, "debian:6.12", tmp_path, hugepfn)


@pytest.mark.parametrize(
    ("word", "status", "last"),
    [
        ("fork:pud", FINE, "FINE: as far as user space can tell; values checked: 3"),
        ("device_memory_off:pte", FINE, "FINE: as far as user space can tell; values checked: 5"),
        ("area_of_a_leaf_and_a_bit:pmd", 2, "CANNOT TELL: what is claimed is about page-table entries, which only"),
    ],
)
def test_a_scenario_as_a_c_file(word: str, status: int, last: str, tmp_path: Path, hugepfn: Command) -> None:
    source, program = tmp_path / "scenario.c", tmp_path / "scenario"
    assert hugepfn("reproducer", word, "-o", str(source)).returncode == 0
    subprocess.run(["gcc", "-static", "-pthread", "-o", program, source], check=True, timeout=120)
    done = hugepfn("exec", "--kernel", "debian:6.12", str(program), "{bdf}")
    assert (done.returncode, done.stdout.splitlines()[-1][: len(last)]) == (status, last)


@pytest.mark.long
def test_a_scenario_as_a_c_file_knows_a_broken_kernel(tmp_path: Path, hugepfn: Command) -> None:
    source, program = tmp_path / "scenario.c", tmp_path / "scenario"
    assert hugepfn("reproducer", "fork:pud", "-o", str(source)).returncode == 0
    subprocess.run(["gcc", "-static", "-pthread", "-o", program, source], check=True, timeout=120)
    broken = f"debsrc:6.12+{ROOT / 'examples/undo-fork-patch.patch'}"
    done = hugepfn("exec", "--kernel", broken, str(program), "{bdf}")
    assert (done.returncode, "BROKEN: " in done.stdout) == (BROKEN, True)


@pytest.mark.long
@pytest.mark.parametrize("spec", KERNELS)
@pytest.mark.parametrize("bug", sorted({*BUGS} - {*DEBUG_ALONE}))
def test_every_reproducer(bug: str, spec: str, tmp_path: Path, hugepfn: Command) -> None:
    if bug in RACES and expected(bug, spec, FACTS) == BROKEN:
        pytest.skip(f"{bug} is a race, which this kernel loses only sometimes")
    check(bug, spec, tmp_path, hugepfn)
