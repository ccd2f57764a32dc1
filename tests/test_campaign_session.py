"""A session that somebody wants ended ends, however early that is said."""

from __future__ import annotations

from types import SimpleNamespace

from harness.campaign.session import Stopping


def test_a_session_ends_after_the_test_at_hand() -> None:
    session, stopping = SimpleNamespace(shouldstop=False), Stopping()
    stopping.begin(session)
    assert not session.shouldstop
    stopping.stop()
    assert session.shouldstop == "nobody waits for it any more"


def test_a_session_that_nobody_waits_for_before_it_begins_runs_no_test() -> None:
    session, stopping = SimpleNamespace(shouldstop=False), Stopping()
    stopping.stop()
    stopping.begin(session)
    assert session.shouldstop == "nobody waits for it any more"
