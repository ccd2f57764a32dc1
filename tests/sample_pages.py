"""Pages of ``--html`` from simulated results, for the tests of their content and of how a browser shows them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.campaign import compare, matrix, series
from harness.campaign.kernels import RunOptions
from harness.campaign.report import PageRequest
from harness.pagetable import Observation
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.differences import compare_runs
from harness.verdict.table import Column, Table

EVIL = "</script><img src=x onerror=document.title=1><!-- @DATA@ @STYLE@ & \u2028"
SUBJECT = "mm/huge_memory: write-protect a pud that is copied"
PLAIN = PageRequest()
DIRTY, SAVED = "P W U A D PSE SPECIAL NX", "P U PSE SPECIAL SAVED_DIRTY NX"
WRITTEN, PROTECTED = 0x80000001000002E7, 0x8400000100000285


def observation(bits: str, raw: int, checkpoint: str = "forked", **more: Any) -> Observation:
    given = {"process": "child", "mapping": "bar", "offset": 0, "level": "pud", "pfn": "bar+0x0", **more}
    return Observation(checkpoint=checkpoint, raw=raw, bits=tuple(bits.split()), pagemap=None, **given)


def run_of(*observations: Observation, claims: tuple[Claim, ...] = (), log: tuple[str, ...] = ()) -> Run:
    return Run((ScenarioResult("fork", "pud", Outcome.PASSED, "", claims, observations, log),))


def whole_page(table: Table, missing: Mapping[str, str] | None = None, request: PageRequest = PLAIN) -> str:
    """The page of a matrix."""
    return matrix.page_of(request, table, missing or {}, 1, RunOptions())


def comparison(before: Column, after: Column, request: PageRequest = PLAIN) -> str:
    """The page of a comparison of two columns with one run each."""
    specs, runs = (before.spec, after.spec), (before.runs[0], after.runs[0])
    found = compare_runs(*runs)
    answer = compare.Comparison(specs, runs, found)
    printed = [line.plain for line in compare.report_lines(answer)]
    return compare.page_of(request, answer, found, printed, RunOptions())


def kernel(spec: str, *, broken: bool = False) -> Column:
    """Results of one kernel: a case that it may break, a skip, and many cases that pass."""
    bits, raw = (SAVED, PROTECTED) if broken else (DIRTY, WRITTEN)
    entries = (
        *(observation(DIRTY, WRITTEN, at, process="parent") for at in ("written", "forked")),
        *(observation(bits, raw, at) for at in ("forked", "child-written")),
    )
    keeps = Claim("the child's pud keeps its dirty bit", Outcome.PASSED, "mm/huge_memory.c copy_huge_pud()")
    lost = Claim(keeps.name, Outcome.FAILED, keeps.kernel_function, f"D is clear: {'a long word ' * 12}{EVIL}")
    bug = "[    4.125] BUG: Bad page map in process fork  pte:8000000100000297 pmd:0010a067, and more that is long"
    log = ("[    4.000] hugepfn: checkpoint forked", bug if broken else "[    4.100] all is well", EVIL)
    claims = (
        Claim("the child has the parent's leaf", Outcome.PASSED, keeps.kernel_function),
        lost if broken else keeps,
    )
    fork = ScenarioResult("fork", "pud", Outcome.FAILED if broken else Outcome.PASSED, "", claims, entries, log)
    context = {
        "kernel": {"spec": spec, "release": "6.12.118", "config_hash": None},
        "accel": "tcg",
        "qemu": "10.0.2",
        "smp": 1,
        "append": [],
    }
    others = [
        ScenarioResult("zap", None, Outcome.PASSED),
        ScenarioResult("mseal", "pmd", Outcome.SKIPPED, f"no {EVIL}"),
    ]
    more = [ScenarioResult(f"scenario_number_{number}", "pte", Outcome.PASSED) for number in range(60)]
    return Column(spec, (Run((fork, *others, *more), context),))


def series_of(*columns: Column, subject: str = SUBJECT) -> str:
    """The page of a series of an mbox: the base, and one patch per further column."""
    steps = [series.PatchStep("base", "debsrc:6.12", "debsrc:6.12")]
    count = len(columns) - 1
    steps += [series.PatchStep(f"{n}/{count}", subject, f"debsrc:6.12+/tmp/{n}.patch") for n in range(1, count + 1)]
    named = [Column(step.name, column.runs) for step, column in zip(steps, columns, strict=True)]
    return series.page_of(PageRequest(), "debsrc:6.12", Path("my series.mbox"), steps, Table.of(named), RunOptions())
