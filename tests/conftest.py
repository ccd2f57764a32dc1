"""For all tests."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from harness.pytest_failures import OWN_FRAMES_SHOWN

# A busy host takes longer than 200 ms for an example now and then, which says nothing of the code.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")

_HEEDED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


def pytest_configure(config: pytest.Config) -> None:
    """A failure of a test of hugepfn itself is looked for in hugepfn."""
    config.stash[OWN_FRAMES_SHOWN] = True


@pytest.fixture(autouse=True, scope="session")
def heeded() -> Iterator[None]:
    """Signals that whoever started pytest ignores end what we start: nohup ignores SIGHUP, a shell's `&` SIGINT."""
    before = {number: signal.getsignal(number) for number in _HEEDED}
    for number, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
