"""Fixtures and settings for all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from harness.plugin.failures import OWN_FRAMES_SHOWN

# A busy host sometimes takes longer than 200 ms for an example, which says nothing about the code.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

_HEEDED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


def pytest_configure(config: pytest.Config) -> None:
    """Show hugepfn's own frames in tracebacks, because these tests check hugepfn itself."""
    config.stash[OWN_FRAMES_SHOWN] = True


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option --update."""
    parser.addoption("--update", action="store_true", help="write the expectations of golden logs anew")


@pytest.fixture(autouse=True, scope="session")
def heeded() -> Iterator[None]:
    """Restore signals that were ignored when pytest started: nohup ignores SIGHUP, a shell's `&` ignores SIGINT."""
    before = {number: signal.getsignal(number) for number in _HEEDED}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
