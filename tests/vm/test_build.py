"""Tests with a kernel built from Debian's source: boot, scenarios, incremental builds. Minutes if not cached."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from harness import kernel_functions
from harness.kernel import Kernel
from harness.machine.vm import VM
from harness.source_links import ELIXIR, functions_of

from .conftest import ROOT, Command

BUILD_TIMEOUT_S = 3000
UNDONE = ROOT / "examples/undo-fork-patch.patch"
HARMLESS = """\
--- a/mm/huge_memory.c
+++ b/mm/huge_memory.c
@@ -1,3 +1,4 @@
 // SPDX-License-Identifier: GPL-2.0-only
+/* {} */
 /*
  *  Copyright (C) 2009  Red Hat, Inc.
"""


def compiled(spec: str) -> list[str]:
    """The files that were compiled for a kernel in the cache."""
    log = Kernel.parse(spec).resolve().image.parent / "build.log"
    return [line.split()[1] for line in log.read_text().splitlines() if line.startswith("  CC ")]


def test_debians_source_builds_and_boots_and_passes_fork(hugepfn: Command) -> None:
    done = hugepfn("run", "fork", "--level", "pud", "--kernel", "debsrc:6.12", timeout_s=BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    image = Kernel.parse("debsrc:6.12").resolve()
    assert image.config is not None
    assert image.config.is_builtin("ARCH_SUPPORTS_HUGE_PFNMAP")
    assert not image.config.is_set("NET"), "the minimal kernel must not have networking"
    assert image.modules_dir is None
    said = str(kernel_functions.copy_huge_pud)
    context = {"spec": image.spec, "release": image.release, "tree": image.tree}
    shown, _ = functions_of(context, [said], ELIXIR)[said]
    assert re.fullmatch(r"mm/huge_memory\.c:\d+ copy_huge_pud\(\)", shown)


def test_our_kernel_has_all_vcpus_and_split_page_table_locks() -> None:
    image = Kernel.parse("debsrc:6.12").resolve()
    assert image.config is not None
    assert image.config.is_set("SPLIT_PTE_PTLOCKS"), "stock kernels have it; NR_CPUS below 4 would disable it"
    with VM(image, smp=4) as vm:
        assert vm.get("/sys/devices/system/cpu/online") == b"0-3\n"


def test_a_change_in_huge_memory_is_an_incremental_build(hugepfn: Command, tmp_path: Path) -> None:
    specs = []
    for name in ("first", "second"):
        patch = tmp_path / f"{name}.patch"
        patch.write_text(HARMLESS.format(os.urandom(8).hex()))  # never built before
        specs.append(f"debsrc:6.12+{patch}")
    done = hugepfn("build", specs[0], timeout_s=BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    done = hugepfn("run", "fork", "--level", "pud", "--kernel", specs[1], timeout_s=BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    # The other files are made by every link: the version, the table of symbols.
    assert [name for name in compiled(specs[1]) if name.startswith(("mm/", "kernel/", "drivers/"))] == [
        "mm/huge_memory.o"
    ]


@pytest.mark.parametrize(
    ("level", "broken"),
    [("pmd", "the child has the parent's leaf"), ("pud", "the parent's entry is as it was before fork")],
)
def test_reverting_the_fork_patch_breaks_the_claims_about_fork(hugepfn: Command, level: str, broken: str) -> None:
    spec = f"debsrc:6.12+{UNDONE}"
    done = hugepfn("run", "fork", "--level", level, "--kernel", spec, timeout_s=BUILD_TIMEOUT_S)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any("BROKEN" in line and broken in line for line in done.stdout.splitlines()), done.stdout
