"""Tests for a program without a device: a skip if the kernel is built without it, an error if modules are missing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from harness.campaign.reporter import RunReporter
from harness.errors import HugepfnError, PremiseNotMet, UsageError
from harness.guest.job import ExitStatus
from harness.kernel import ImageKind, KernelImage
from harness.kernel.kconfig import Kconfig
from harness.observe.probe import probe
from harness.observe.run import GuestRun
from harness.observe.run_result import RunResult
from harness.pagetable import Level
from harness.plugin.carried import Carried, carry
from harness.qemu.spec import Accel
from harness.verdict import Outcome, ScenarioResult, parse_ktap
from harness.verdict.log.troubles import KernelTroubles

SKIP = "KTAP version 1\n1..0 # SKIP no device bound to vfio-pci: this guest has no vfio-pci driver\n"
SKIPPED = f"# value lacks=device\n{SKIP}"
NONE_GIVEN = "there are no modules"


def _image(config: str | None) -> KernelImage:
    known = None if config is None else Kconfig(config)
    return KernelImage("./bzImage", Path("/k/bzImage"), ImageKind.BZIMAGE, "6.12.0", None, known)


def _reason(stdout: str, missing: str, config: str | None = None) -> HugepfnError:
    run = SimpleNamespace(vm=SimpleNamespace(known_kernel=_image(config), ready={"missing": missing}))
    return GuestRun._unmet(cast(Any, run), RunResult(parse_ktap(stdout), ExitStatus(4, None), stdout, ""))


@pytest.mark.parametrize(
    ("stdout", "missing", "config", "kind", "words"),
    [
        (SKIPPED, "vfio_pci vfio_iommu_type1 ", None, UsageError, NONE_GIVEN),
        (SKIPPED, "vfio_iommu_type1 ", None, UsageError, "vfio-iommu-type1 is not built in"),
        (SKIPPED, "vfio_pci ", "CONFIG_VFIO=y\n", PremiseNotMet, "was built without vfio-pci"),
        (SKIPPED, "", None, PremiseNotMet, "no device bound to vfio-pci"),  # for example, no IOMMU
        (
            SKIP,
            "vfio_pci ",
            None,
            PremiseNotMet,
            "no device bound to vfio-pci",
        ),  # the program skipped for another reason
    ],
)
def test_the_reason_why_there_is_no_device(
    stdout: str, missing: str, config: str | None, kind: type[HugepfnError], words: str
) -> None:
    reason = _reason(stdout, missing, config)
    assert type(reason) is kind
    assert words in str(reason)


class CapsRun:
    """A run of caps.c on a kernel with SAVED_DIRTY."""

    def __enter__(self) -> CapsRun:
        return self

    def __exit__(self, *_: object) -> None: ...

    def kernel_troubles(self) -> KernelTroubles:
        return KernelTroubles()

    def until(self, _checkpoint: str) -> dict[str, Any]:
        layout = SimpleNamespace(five_level=False)
        leaf = SimpleNamespace(dirty=False, write=False, raw=1 << 58, entry=SimpleNamespace(layout=layout))
        return {"parent": SimpleNamespace(leaf=lambda _name: leaf)}

    def finish(self) -> SimpleNamespace:
        return SimpleNamespace(values={"soft_dirty": "1"})


@pytest.mark.parametrize(("missing", "known"), [("vfio_pci ", None), ("", False)])
def test_a_missing_module_is_no_verdict_about_the_kernel(missing: str, known: bool | None) -> None:
    vm = SimpleNamespace(
        launch=lambda *_: CapsRun(),
        kernel=_image(None),
        ready={"missing": missing},
        spec=SimpleNamespace(accel=Accel.TCG),
        get=lambda _path: b"ffffffff81000000 T _text\n",
    )
    caps = probe(cast(Any, vm))
    assert caps.image.huge_fault is known
    assert all(
        bool(caps.image.why_not(level)) is (known is False and level.label != "pte")
        for level in (Level.PTE, Level.PMD, Level.PUD)
    )


@pytest.mark.parametrize(
    ("usage", "misused"), [([True], True), ([True, True], True), ([True, False], False), ([], False)]
)
def test_a_session_is_misused_only_if_every_test_is(usage: list[bool], misused: bool) -> None:
    reporter = RunReporter(Console(quiet=True), quiet=True)
    context = {"kernel": {"release": None}}
    for number, wrong in enumerate(usage):
        result = ScenarioResult("fork", "pud", Outcome.ERROR, "pass --modules DIR")
        report = cast(Any, SimpleNamespace(nodeid=f"test_{number}", longreprtext=""))
        carry(report, Carried(result, context, misused=wrong))
        reporter.pytest_runtest_logreport(report)
    assert reporter.misused is misused
