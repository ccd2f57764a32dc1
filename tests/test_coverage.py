"""Which lines a kernel executed: patches, gcov's answers, the report, and the counters of a program that gcc built."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from harness.coverage.changes import LineChanges, changes_of
from harness.coverage.counters import Counters
from harness.coverage.counts import counts_of
from harness.coverage.measure import CoverageRequest, functions_of_interest
from harness.coverage.page import write_page
from harness.coverage.report import CoverageReport, CoverageSubject, FunctionCoverage, PatchLine, lines_of, report_of
from harness.errors import MachineryError, UsageError
from harness.host import cache
from harness.kernel.build.profile import ProfiledFiles, profile_variables
from harness.kernel.definitions import functions_of
from harness.selection.selected import Selected
from tests import schemas

DIFF = """\
diff --git a/mm/one.c b/mm/one.c
index 1111111..2222222 100644
--- a/mm/one.c
+++ b/mm/one.c
@@ -3,2 +2,0 @@ int one(void)
-	a = 1;
--- b/looks like a header
@@ -10 +8,3 @@ int two(void)
-	old();
+	new();
++++ b/mm/also.c
+	newer();
diff --git a/mm/new.c b/mm/new.c
new file mode 100644
--- /dev/null
+++ b/mm/new.c
@@ -0,0 +1,2 @@
+int x;
+int y;
diff --git a/mm/gone.c b/mm/gone.c
deleted file mode 100644
--- a/mm/gone.c
+++ /dev/null
@@ -1 +0,0 @@
-int z;
"""


def test_the_lines_of_a_patch_are_read_from_its_hunks() -> None:
    assert changes_of(DIFF) == LineChanges(
        removed={"mm/one.c": (3, 4, 10), "mm/gone.c": (1,)},
        added={"mm/one.c": (8, 9, 10), "mm/new.c": (1, 2)},
    )
    with pytest.raises(UsageError, match="comes before the name of a file"):
        changes_of("@@ -1 +1 @@\n-a\n+b\n")


SOURCE = """\
static int helper(int x)
{
	if (x > 3)
		return 2;
	return 1;
}

int outer(int x)
{
	return helper(x);
}

SYSCALL_DEFINE1(thing, int, x)
{
	return 0;
}

int declared(int);
"""
COUNTS = {"mm/a.c": {1: 7, 3: 7, 4: 0, 5: 7, 8: 7, 10: 7, 13: 0, 15: 0}}


def report() -> CoverageReport:
    wanted = CoverageSubject(
        {"mm/a.c": (4, 5, 6)}, (("mm/a.c", "helper"), ("mm/a.c", "absent"), ("mm/b.c", "x")), ("mm/a.c",)
    )
    return report_of(wanted, COUNTS, lambda file: SOURCE if file == "mm/a.c" else "")


def test_a_report_has_the_lines_with_code_and_the_functions() -> None:
    seen = report()
    assert seen.patch == (
        PatchLine("mm/a.c", 4, "\t\treturn 2;", 0),
        PatchLine("mm/a.c", 5, "\treturn 1;", 7),
    )
    assert seen.functions == (
        FunctionCoverage("mm/a.c", "helper", 1, (1, 3, 5), (4,)),
        FunctionCoverage("mm/a.c", "outer", 8, (8, 10), ()),
        FunctionCoverage("mm/a.c", "thing", 13, (), (13, 15)),
    )
    assert seen.unknown == (("mm/a.c", "absent"), ("mm/b.c", "x"))
    assert [one.line for one in seen.missed] == [4]


def test_what_nothing_executed_is_told_first() -> None:
    assert list(lines_of(report(), "added", patched=True)) == [
        "1 of 2 lines with code that the patch has added were executed (50 %)",
        "  not executed  mm/a.c:4: return 2;",
        "",
        "  0 %  0 of 2 lines  mm/a.c:13 thing()  not 13-15",
        " 75 %  3 of 4 lines  mm/a.c:1 helper()  not 4",
        "100 %  2 of 2 lines  mm/a.c:8 outer()",
        "not in this kernel: mm/a.c absent(), mm/b.c x()",
    ]


def test_a_patch_without_code_is_told() -> None:
    seen = report_of(CoverageSubject({"mm/a.c": (6,)}), COUNTS, lambda _file: SOURCE)
    assert list(lines_of(seen, "added", patched=True)) == [
        "no line that the patch has added has code in this kernel",
        "",
    ]
    assert list(lines_of(seen, "added", patched=False)) == []


def test_a_report_as_json_fits_its_schema() -> None:
    head = {"schema": "hugepfn-coverage", "version": 1, "kernel": {"spec": "debsrc:6.12", "release": "6.12.1"}}
    data = {**head, "lines": "added", **report().to_json(), "lost": ["fork[pud]: the kernel died"]}
    assert schemas.check(json.loads(json.dumps(data))) == "hugepfn-coverage"
    assert [one["count"] for one in data["patch"]] == [0, 7]


def test_counts_of_several_objects_are_added_up() -> None:
    def said(count: int) -> bytes:
        header = {"file": "/src/include/x.h", "lines": [{"line_number": 3, "count": count}]}
        other = {"file": "/usr/include/y.h", "lines": [{"line_number": 1, "count": 9}]}
        return json.dumps({"files": [header, other]}).encode()

    assert counts_of([said(2), said(3)], "/src") == {"include/x.h": {3: 5}}
    for wrong in (b"", b"{}", b'{"files": [{"file": "/src/a", "lines": [{}]}]}', b"[]"):
        with pytest.raises(MachineryError, match="gcov's JSON has another form"):
            counts_of([wrong], "/src")


class Guest:
    """A machine whose kernel is a program that gcc has built to count its lines."""

    def __init__(self, program: Path, objects: Path) -> None:
        self.program, self.objects = program, objects
        self.alive = True

    def run(self, *arguments: str) -> None:
        subprocess.run([self.program, *arguments], check=True, timeout=60)

    def get(self, path: str) -> bytes:
        if not self.alive:
            raise MachineryError("the guest is gone")
        return Path(path.removeprefix("/sys/kernel/debug/gcov")).read_bytes()

    def put(self, path: str, data: bytes, mode: int = 0o755) -> None:
        assert (path, data, mode) == ("/sys/kernel/debug/gcov/reset", b"0\n", 0o755)
        for counted in self.objects.rglob("*.gcda"):
            counted.unlink()


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    source, objects = tmp_path / "src", tmp_path / "obj"
    for folder in (source / "mm", objects / "mm"):
        folder.mkdir(parents=True)
    main = "int main(int c, char **v) { return !v || outer(c) == c + 9; }\n"
    (source / "mm/a.c").write_text(SOURCE[: SOURCE.index("SYSCALL")] + main)
    counting = ["gcc", "-O2", "-fprofile-arcs", "-ftest-coverage"]
    subprocess.run([*counting, "-c", str(source / "mm/a.c"), "-o", "mm/a.o"], check=True, cwd=objects, timeout=60)
    subprocess.run(["gcc", "--coverage", "mm/a.o", "-o", "vmlinux"], check=True, cwd=objects, timeout=60)
    ProfiledFiles(objects, source).keep(["mm/a.c", "mm/not_built.c"], tmp_path / "entry")
    return Guest(objects / "vmlinux", objects)


def test_what_machines_have_counted_is_added_up(guest: Guest, tmp_path: Path) -> None:
    """Also what an inlined function has executed, and nothing of before the reset."""
    (tmp_path / "cov").mkdir()
    counters = Counters.create(tmp_path / "cov", tmp_path / "entry")
    assert counters.files == [Path("mm/a")]
    assert set(counters.read()["mm/a.c"].values()) == {0}
    guest.run("1", "2", "3", "4", "5")
    counters.reset(guest)
    for arguments in ((), ("1",)):
        guest.run(*arguments)
        Counters(tmp_path / "cov").take(guest, "a test")  # as another process does it
        counters.reset(guest)
    seen = counters.read()["mm/a.c"]
    assert (seen[3], seen[4]) == (2, 0)
    guest.run("1", "2", "3", "4")
    counters.take(guest, "a test")
    assert counters.read()["mm/a.c"][4] == 1
    assert counters.lost == []
    guest.alive = False
    counters.take(guest, "fork[pud]")
    assert counters.lost == ["fork[pud]: the guest is gone"]
    assert counters.read()["mm/a.c"][4] == 1


def test_a_kernel_without_counted_lines_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MachineryError, match="does not count which lines it executes"):
        Counters.create(tmp_path / "cov", tmp_path)


def test_the_page_has_each_file(tmp_path: Path) -> None:
    pytest.importorskip("gcovr")

    def export(folder: Path) -> None:
        (folder / "mm").mkdir()
        (folder / "mm/a.c").write_text(SOURCE)

    write_page(COUNTS, ["mm/a.c", "mm/none.c"], export, tmp_path / "page")
    pages = "".join(path.read_text() for path in (tmp_path / "page").glob("*.html"))
    assert "SYSCALL_DEFINE1" in pages
    assert "a.c" in (tmp_path / "page/index.html").read_text()
    assert "none.c" not in pages


def test_the_functions_of_a_file_are_found_in_its_text() -> None:
    assert functions_of(SOURCE) == ["helper", "outer", "thing"]


def test_make_gets_each_object_under_both_of_its_names() -> None:
    assert profile_variables(["arch/x86/kvm/mmu/mmu.c", "mm/mmu.c"]) == [
        "GCOV_PROFILE_mmu.o=y",
        "GCOV_PROFILE_mmu/mmu.o=y",
        "GCOV_PROFILE_mm/mmu.o=y",
    ]


def test_the_functions_of_scenarios_are_of_interest() -> None:
    names = [str(one) for one in functions_of_interest([Selected.parse("fork:pud")])]
    assert "mm/huge_memory.c copy_huge_pud()" in names
    assert len(names) < 10 < len(functions_of_interest([]))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (CoverageRequest("debian:6.12"), "debian:6.12 is not built here, so its lines cannot be counted"),
        (CoverageRequest("debsrc:6.12", removed=True), "--removed needs a kernel with a patch: debsrc:6.12"),
    ],
)
def test_a_kernel_that_cannot_be_measured_is_refused(request_: CoverageRequest, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        request_.recipe()


def test_a_kernel_that_counts_is_another_entry_of_the_cache(tmp_path: Path) -> None:
    ProfiledFiles(Path("/o"), Path("/s")).keep([], tmp_path)
    assert cache.read_note(tmp_path / "profile.json") == {"objects": "/o", "source": "/s"}
    assert ProfiledFiles.of(tmp_path) == ProfiledFiles(Path("/o"), Path("/s"))
