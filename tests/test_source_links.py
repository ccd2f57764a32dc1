"""Tests for the links of kernel functions. Nothing is fetched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness import kernel_functions as fn
from harness.errors import UsageError
from harness.kernel.build import TreeOrigin
from harness.selection.tests import facts_of
from harness.source_links import ELIXIR, KernelSource, SourceSite, functions_of

LINES = SourceSite("https://example.org/{version}/source/{file}#L{line}")


@pytest.mark.parametrize(
    ("spec", "release", "tag"),
    [
        ("debian:6.12", "6.12.118+deb13-cloud-amd64", "v6.12.118"),
        ("debian:6.1.195", "6.1.0-57-cloud-amd64", "v6.1.195"),
        ("tree:/linux", "6.12.0", "v6.12"),
        ("tree:/linux", "7.3.0-rc2-00012-gabcdef", "v7.3-rc2"),
        ("./bzImage", "", ""),
        ("./bzImage", None, ""),
    ],
)
def test_the_tag_of_a_release(spec: str, release: str | None, tag: str) -> None:
    assert KernelSource({"spec": spec, "release": release}).tag == tag


def test_a_measured_debian_release_has_its_version() -> None:
    version, release = next(pair for pair in facts_of_the_project().items() if pair[0].startswith("6.1."))
    assert KernelSource({"spec": "debian:6.1", "release": release}).tag == f"v{version}"


def facts_of_the_project() -> dict[str, str]:
    return dict(facts_of(Path(__file__).resolve().parents[1] / "guest_tests").kernels)


def test_the_addresses() -> None:
    assert ELIXIR.address("v6.12", "mm/memory.c", None, "zap_pte_range") == f"{ELIXIR.url}/v6.12/A/ident/zap_pte_range"
    assert ELIXIR.address("", "", None, "f") == f"{ELIXIR.url}/latest/A/ident/f"
    assert SourceSite("http://here/linux/").address("v6.12", "", 7, "f") == "http://here/linux/v6.12/A/ident/f"
    assert LINES.address("v6.12", "mm/a b.c", 7, "f") == "https://example.org/v6.12/source/mm/a%20b.c#L7"
    assert LINES.address("v6.12", "mm/memory.c", None, "f") == "", "there is no address if the line is not known"
    assert SourceSite("vscode://file/home/me/linux/{file}:{line}").address("", "mm/memory.c", 7, "f") == (
        "vscode://file/home/me/linux/mm/memory.c:7"
    )


@pytest.mark.parametrize(
    "url",
    ["", "elixir", "javascript:alert(1)", "https://x/{commit}", "https://x/{", "https://x/{}", "https://x/{file.x}"],
)
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match=r"expected an address such as https://.* \{version\}, \{file\}, \{line\}"):
        SourceSite(url)


def test_a_function_has_the_name_of_that_kernel() -> None:
    """For example, insert_pfn_pud() became insert_pud()."""
    said = str(fn.insert_pfn_pud)
    old, new = (functions_of({"release": release}, [said, said], ELIXIR) for release in ("6.12.118", "7.3.4"))
    assert old == {said: (said, f"{ELIXIR.url}/v6.12.118/A/ident/insert_pfn_pud")}
    assert new == {said: ("mm/huge_memory.c insert_pud()", f"{ELIXIR.url}/v7.3.4/A/ident/insert_pud")}


def test_a_text_that_is_not_a_function_has_no_address() -> None:
    assert functions_of({"release": "6.12"}, ["", fn.CPU, "f", "<x>()"], ELIXIR) == {}
    assert functions_of({"release": "6.12"}, ["f()"], ELIXIR) == {"f()": ("f()", f"{ELIXIR.url}/v6.12/A/ident/f")}
    assert functions_of({"release": "6.12"}, ["f()"], LINES) == {"f()": ("f()", "")}


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The context of a kernel that was built from a git tree. The work tree has changed since."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    tree = tmp_path / "linux"
    (tree / "mm").mkdir(parents=True)
    (tree / "Kconfig").touch()
    source = tree / "mm/huge_memory.c"
    source.write_text("/*\n * copy_huge_pud()\n */\nint copy_huge_pud(int);\n\nint copy_huge_pud(int a)\n{\n}\n")
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    for words in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-q", "-m", "x")):
        subprocess.run(["git", "-C", str(tree), *who, *words], check=True)
    origin = TreeOrigin(tree, "main")
    context = {"spec": origin.spec, "release": "6.12.118", "tree": origin.tree(None, True)}
    source.write_text("")
    return context


def test_a_line_belongs_to_the_tree_that_was_built(built: dict[str, str]) -> None:
    said = str(fn.copy_huge_pud)
    assert functions_of(built, [said], LINES) == {
        said: ("mm/huge_memory.c:6 copy_huge_pud()", "https://example.org/v6.12.118/source/mm/huge_memory.c#L6")
    }
    assert functions_of(built, [str(fn.copy_huge_pmd)], LINES)[str(fn.copy_huge_pmd)][1] == "", (
        "this tree does not have the function"
    )


def test_a_missing_tree_is_no_error(built: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = str(fn.copy_huge_pud)
    assert functions_of({**built, "tree": "0" * 40}, [said], LINES) == {said: (said, "")}
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "other"))
    assert functions_of(built, [said], LINES) == {said: (said, "")}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert functions_of(built, [said], LINES) == {said: (said, "")}
