"""Tests for ``--expect`` and ``--expect-file``: how they are read, and what is refused before a kernel boots."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.selection.expected import absolute, read, resolve
from harness.selection.selected import Selected
from harness.verdict.table import Case


def test_a_file_has_one_expectation_per_line_and_tests_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "expected.txt").write_text(
        "# on purpose\n\nfork:pmd=fail\n  # and\n./test_x.py::test_y:# is no comment here=skip\nfork:pmd=fail\n"
    )
    monkeypatch.chdir(tmp_path)
    found = read(["zap=pass"], [Path("mine/expected.txt")])
    assert [str(one) for one in found] == [
        *("zap=pass", "fork:pmd=fail", "mine/test_x.py::test_y:# is no comment here=skip")
    ]
    assert [one.test for one in absolute(found)] == ["zap", "fork", f"{tmp_path}/mine/test_x.py::test_y"]


def test_an_invalid_file_is_reported_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "expected.txt"
    file.write_text("fork=fail\nfork=fial\n")
    with pytest.raises(UsageError, match=f"^{file}:2: 'fork=fial': no outcome 'fial'; did you mean 'fail'"):
        read([], [file])
    with pytest.raises(UsageError, match="none cannot be read: No such file"):
        read([], [tmp_path / "none"])
    file.write_bytes(b"\xff\n")
    with pytest.raises(UsageError, match="cannot be read"):
        read([], [file])


def known_tests(file: Path) -> list[Selected]:
    ours = [Selected(None, "fork", level) for level in ("pte", "pmd")]
    return [*ours, Selected(None, "plain", None), Selected(file, "mine", "pud"), Selected(file, "mine[thp]", "pud")]


def test_which_case_an_expectation_is_about(tmp_path: Path) -> None:
    file = tmp_path / "test_mine.py"
    file.write_text("")
    said = read(["fork=fail", "fork:2M:a claim=fail", f"{file}::test_mine=skip", "plain=pass"])
    found = {case: [str(one) for one in several] for case, several in resolve(said, known_tests(file)).items()}
    assert found == {
        Case("fork", "pte"): ["fork=fail"],
        Case("fork", "pmd"): ["fork=fail", "fork:pmd:a claim=fail"],
        Case("mine", "pud", file=str(file)): [f"{file}::test_mine=skip"],
        Case("mine[thp]", "pud", file=str(file)): [f"{file}::test_mine=skip"],
        Case("plain", None): ["plain=pass"],
    }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "frok=fail",
            "'frok=fail' is expected of no test that was selected; did you mean 'fork'? these were: fork, pl",
        ),
        ("zzz=fail", "'zzz=fail' is expected of no test that was selected; these were: fork, plain, mine, mine[thp]"),
        ("fork:pud=fail", "'fork:pud=fail' is expected of no test that was selected: fork runs at pte, pmd only"),
        ("plain:pud=fail", "plain runs without levels"),
        ("OTHER=fail", "is expected of no test that was selected: none is in "),
        ("FILE::test_mnie=fail", "did you mean 'mine'? these were: mine, mine[thp]"),
        ("none.py=fail", "none.py: no such file"),
    ],
)
def test_an_expectation_without_a_test_gets_suggestions(tmp_path: Path, said: str, message: str) -> None:
    file, other = tmp_path / "test_mine.py", tmp_path / "test_other.py"
    file.write_text("")
    other.write_text("")
    words = read([said.replace("FILE", str(file)).replace("OTHER", str(other))])
    with pytest.raises(UsageError) as refused:
        resolve(words, known_tests(file))
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_contradictory_expectations_are_refused(tmp_path: Path) -> None:
    known = known_tests(tmp_path / "test_mine.py")
    with pytest.raises(UsageError, match="'fork=fail' and 'fork:pmd=pass' contradict each other for fork pmd"):
        resolve(read(["fork=fail", "fork:pmd=pass"]), known)
    with pytest.raises(UsageError, match="'fork=skip' and --strict contradict each other"):
        resolve(read(["fork=skip"]), known, strict=True)
    resolve(read(["fork=fail", "fork:a=pass", "fork:b=fail"]), known, strict=True)
