"""Runs the kernel's own selftests, and programs of our own that fail in every way."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from .conftest import Command

# The part of a kernel's source that is needed to build selftests.
TREE = {
    "Makefile": "headers:\n\t@mkdir -p $(O)/usr/include\n",
    "Kconfig": "",
    "arch/x86/Makefile": "",
    "tools/testing/selftests/bad/Makefile": """\
TEST_GEN_PROGS := $(patsubst %,$(OUTPUT)/%,segv hang complain panic orderly)
$(OUTPUT)/%: %.c
	$(CC) $(USERCFLAGS) $^ -o $@
""",
}
HEAD = (
    "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\nint main(void) { setvbuf(stdout, NULL, _IOLBF, 0);"
)
PROGRAMS = {
    "segv": 'puts("TAP version 13\\n1..2\\nok 1 before"); *(volatile int *)8 = 1;',
    "hang": 'puts("TAP version 13\\n1..2\\nok 1 before"); for (;;) pause();',
    "complain": 'FILE *log = fopen("/dev/kmsg", "w"); fputs("<4>BUG: Bad page state in process x  pfn:7\\n", log);'
    ' fclose(log); puts("TAP version 13\\n1..1\\nok 1 all is well"); return 0;',
    "panic": 'FILE *sysrq = fopen("/proc/sysrq-trigger", "w"); puts("TAP version 13\\n1..2\\nok 1 before");'
    ' fputs("c", sysrq); fclose(sysrq); for (;;) pause();',
    "orderly": 'puts("TAP version 13\\n1..1"); fputs("on stderr\\n", stderr);'
    ' puts(getcwd(NULL, 0)); puts("not ok 1 point"); return 1;',
}


def test_mkdirty_from_debians_source_on_debians_kernel(hugepfn: Command, tmp_path: Path) -> None:
    junit = tmp_path / "out.xml"
    done = hugepfn("kselftest", "mm:mkdirty", "--kernel", "debian:6.12", "--junit", str(junit), timeout_s=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "selftests of debsrc:6.12" in done.stdout
    assert "  ok       Page migration of THP: SIGSEGV generated, page not modified\n" in done.stdout
    assert done.stdout.splitlines()[-1] == "1 passed of 1 programs; 6 passed of 6 points"
    cases = ElementTree.parse(junit).getroot().findall(".//testcase")
    assert sorted(case.get("classname", "") for case in cases) == ["mm"] + ["mm.mkdirty"] * 6


def test_a_program_that_fails_keeps_its_output(hugepfn: Command, tmp_path: Path) -> None:
    for name, text in TREE.items():
        (tmp_path / "linux" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "linux" / name).write_text(text)
    for name, body in PROGRAMS.items():
        (tmp_path / f"linux/tools/testing/selftests/bad/{name}.c").write_text(f"{HEAD}\n{body} }}\n")
    done = hugepfn("kselftest", "bad", "--kernel", "debian:6.12", "--source", str(tmp_path / "linux"), "--timeout", "6")
    assert done.returncode == 1, done.stdout + done.stderr
    told = {line.partition(": ")[0]: line for line in done.stdout.splitlines() if line.startswith("bad::")}
    assert "1 of 2 planned tests never reported: 2; signal SIGSEGV" in told["bad::segv"]
    assert "nothing within 6 s; its last line was 'ok 1 before'" in told["bad::hang"]
    assert "the kernel log: BUG: Bad page state in process x  pfn:7" in told["bad::complain"]
    assert "sysrq triggered crash" in told["bad::panic"].lower()
    assert "  FAILED   point\n             on stderr\n             /tests\n" in done.stdout
    # A panic may lose the last output of its program.
    verdict = r"5 failed of 5 programs; (4 passed, 1 failed of 5|3 passed, 1 failed of 4) points"
    assert re.fullmatch(verdict, done.stdout.splitlines()[-1])


def test_an_unknown_test_gets_a_list_of_existing_ones(hugepfn: Command) -> None:
    done = hugepfn("kselftest", "mm:soft_dirty", "--kernel", "debian:6.12", timeout_s=1800)
    assert done.returncode == 2
    assert "has no test 'soft_dirty'; expected one of: cow, " in done.stderr
    assert len(done.stderr.splitlines()) == 1
