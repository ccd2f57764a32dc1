"""Checks that pytest --hugepfn-bisect exits like ``hugepfn check``: a failing tool never makes a commit bad."""

from __future__ import annotations

import pytest

pytest_plugins = ("pytester",)

CONFTEST = """
import pytest
from harness.errors import KernelBuildError, KernelDied, MachineryError

@pytest.fixture
def vm(request):
    marker = request.node.get_closest_marker("setup")
    if marker is not None:
        raise {"build": KernelBuildError, "boot": KernelDied, "host": MachineryError}[marker.args[0]]("why\\nmore")
"""
GOOD = "def test_good(vm): pass\n"
BAD = "def test_bad(vm): assert False\n"
SKIP = "import pytest\ndef test_skip(vm): pytest.skip('no THP')\n"
ERROR = "from harness.errors import MachineryError\ndef test_error(vm): raise MachineryError('QEMU is gone')\n"
DIED = "from harness.errors import KernelDied\ndef test_died(vm): raise KernelDied('Oops')\n"


def no_kernel(how: str) -> str:
    return f"import pytest\n@pytest.mark.setup({how!r})\ndef test_{how}(vm): pass\n"


def run(pytester: pytest.Pytester, text: str, *args: str) -> tuple[int, str]:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(text)
    plugins = ("-p", "harness.pytest_plugin", "-p", "no:hypothesispytest", "-p", "no:cacheprovider")
    done = pytester.runpytest_inprocess(*plugins, "-W", "ignore::pytest.PytestUnknownMarkWarning", *args)
    return int(done.ret), done.stderr.lines[-1] if done.stderr.lines else ""


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        (GOOD, 0, "good: 1 of 1 passed"),
        (GOOD + BAD, 1, "bad: bad: failed"),
        (GOOD + DIED, 1, "bad: died: failed"),
        (GOOD + SKIP, 125, "cannot tell: skip: skipped: no THP"),
        (BAD + SKIP, 1, "bad: bad: failed"),
        (GOOD + ERROR, 128, "broken: error: error"),
        (no_kernel("build"), 125, "cannot tell: there is no kernel to test: why more"),
        (GOOD + no_kernel("boot"), 125, "cannot tell: there is no kernel to test: why more"),
        (no_kernel("host"), 128, "broken: host: error: why"),
        ("", 128, "broken: pytest ended with status 5"),
        ("typo", 128, "broken: pytest ended with status 2"),
    ],
)
def test_the_exit_status_is_the_one_that_git_expects(
    pytester: pytest.Pytester, text: str, status: int, said: str
) -> None:
    ended, line = run(pytester, text, "--hugepfn-bisect")
    assert (ended, line.startswith(f"hugepfn: {said}")) == (status, True), line


def test_without_the_option_the_exit_status_is_pytests(pytester: pytest.Pytester) -> None:
    assert run(pytester, no_kernel("build"))[0] == pytest.ExitCode.TESTS_FAILED
    assert run(pytester, SKIP)[0] == pytest.ExitCode.OK


def test_an_invalid_option_is_no_verdict(pytester: pytest.Pytester) -> None:
    ended, line = run(pytester, GOOD, "--hugepfn-bisect", "--hugepfn-smp=none")
    assert ended == 128
    assert line.startswith("hugepfn: broken: ")


def test_the_exit_status_is_the_same_with_workers(pytester: pytest.Pytester) -> None:
    assert run(pytester, GOOD + no_kernel("boot"), "--hugepfn-bisect", "-n", "2", "-p", "xdist")[0] == 125
