"""What a spec requests from the Debian mirror (``debian:6.12@trixie``): which offer fits, and when to ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from harness.archive import apt
from harness.archive.apt import Index, MirrorError
from harness.archive.versions import Versioned, choose, is_exact, newest_of_each_series, series_of, sort_key
from harness.errors import UsageError
from harness.events import Say
from harness.host import cache

REPEAT_S = 600.0  # if the index is younger than this and lacks a version, the mirror is not asked again


class Offered(Versioned, Protocol):
    """A version that a suite of the mirror offers."""

    @property
    def suite(self) -> str: ...


OfferT = TypeVar("OfferT", bound=Offered)


@dataclass(frozen=True)
class Request:
    """A version or the newest one, from one suite or from any."""

    spec: str  # the name of its note in the cache, and the start of its messages
    version: str | None  # "6.12", "6.12.95", "6.12.117-1", "7.3~rc7"
    suite: str | None
    at_least: str = "0"  # the oldest acceptable version if no version is given

    def choose(self, offers: Iterable[OfferT]) -> OfferT | None:
        """The newest offer that fits; None if there is none."""
        return choose([one for one in offers if self.suite in (None, one.suite)], self.version, self.at_least)

    def index(
        self, offers_of: Callable[[Index], Iterable[Offered]], say: Say | None, offline: bool
    ) -> tuple[Index, bool]:
        """The mirror's offers, and whether it was asked just now, because they were old or lacked what is wanted.

        :param offers_of: returns everything that can be chosen from an index.
        :raises MirrorError: the mirror had to be asked, and did not answer or may not be asked.
        """
        if offline:
            raise MirrorError("offline")
        index = apt.load_index()
        if index is not None and index.age_s <= apt.INDEX_TTL_S and not self._asking_may_help(index, offers_of):
            return index, False
        return apt.refresh([self.suite] if self.suite else (), say), True

    def _asking_may_help(self, index: Index, offers_of: Callable[[Index], Iterable[Offered]]) -> bool:
        """Whether a suite was not asked for before, or a version was missing some time ago."""
        if self.suite and self.suite not in index.suites and self.suite not in index.left_out:
            return True
        return index.age_s > REPEAT_S and self.choose(offers_of(index)) is None

    @property
    def _note(self) -> Path:
        return cache.root() / "resolved" / f"{self.spec.replace(':', '_')}.json"

    def recall(self) -> dict[str, Any] | None:
        """What :meth:`remember` stored. It is valid for a day, or forever if the version is exact."""
        note = cache.read_note(self._note)
        if note and (0 <= time.time() - note["at"] < apt.INDEX_TTL_S or is_exact(self.version or "")):
            return note
        return None

    def remember(self, answer: Mapping[str, str], ttl_s: float = apt.INDEX_TTL_S) -> None:
        """Store the answer, so that next time neither the mirror nor the index is needed."""
        cache.write_note(self._note, {**answer, "at": time.time() - (apt.INDEX_TTL_S - ttl_s)})

    def no_such(self, what: str, index: Index, offers: Iterable[Offered]) -> UsageError:
        """The error that lists what exists.

        :param what: "kernel" or "source".
        """
        if self.suite and self.suite not in index.suites:
            reason = index.left_out.get(self.suite, "unknown")
            exist = ", ".join(index.suites)
            return UsageError(f"{self.spec}: there is no suite {self.suite} ({reason}); the mirror has {exist}")
        there = [one for one in offers if self.suite in (None, one.suite)]
        series = series_of(self.version) if self.version else ""
        siblings = sorted((one for one in there if series_of(one.upstream) == series), key=sort_key)
        if siblings:
            versions = ", ".join(dict.fromkeys(one.upstream for one in siblings))
            return UsageError(f"{self.spec}: the only versions of {series} on the mirror are {versions}")
        exist = ", ".join(one.upstream for one in newest_of_each_series(there)) or "none"
        return UsageError(f"{self.spec}: there is no such {what}; the newest of each series on the mirror: {exist}")
