"""Which kernels were seen to have a known bug, and which were checked and do not have it. Pure; the file is TOML.

``guest_tests/known_bugs_seen.toml`` is written by ``make facts``::

    [measured]                  # the run that docs/matrix.md shows
    date = 2026-11-26
    qemu = "7.2.22"
    accel = "tcg"
    hugepfn = "0.1.0"
    scenarios = 147
    cases = 372

    [kernels]                   # its columns: upstream version, and what uname -r prints
    "6.12.118" = "6.12.118+deb13-cloud-amd64"

    [HP-002.present]            # the date of the first such result
    "6.12.117" = 2026-11-22
    [HP-002.absent]
    "6.12.118" = 2026-11-26

A bug is *fixed* in a kernel only if an older kernel of the same series was seen to have it: 6.12.118 after 6.12.117.
6.18 follows 6.17 in mainline but is not a fix of it: a bug of 6.17.13 that 6.18.15 does not have is *absent* there.

A bug has *returned* where its symptom shows on a kernel that was measured without it, or that is newer in the same
series: 6.12.119 after 6.12.118 above, but not 6.12.100, which may be as old as the bug. That is a failure.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from harness.errors import UsageError

_VERSION = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?([-~]rc\d+)?")
_MEASURED = {"date": date, "qemu": str, "accel": str, "hugepfn": str, "scenarios": int, "cases": int}


def version_key(version: str) -> tuple[int, int, int]:
    """Major, minor and patch level of an upstream version or a release; the patch level of a release candidate is -1.

    :raises UsageError: the text does not begin with a version.
    """
    match = _VERSION.match(version)
    if match is None:
        raise UsageError(f"{version!r} is not a kernel version; expected one such as 6.12.118")
    return int(match[1]), int(match[2]), -1 if match[4] else int(match[3] or 0)


def series_of(version: str) -> str:
    """``6.12`` of ``6.12.118``."""
    major, minor, _ = version_key(version)
    return f"{major}.{minor}"


@dataclass(frozen=True, slots=True)
class Sightings:
    """Upstream versions that have or lack one bug, each with the date of the first such result."""

    present: Mapping[str, date] = field(default_factory=dict)
    absent: Mapping[str, date] = field(default_factory=dict)

    def had_it(self, version: str) -> str | None:
        """The newest kernel of the same series, and not newer than this one, that was seen to have the bug; else None.

        The same version counts too: a kernel built from it with a patch may no longer have the bug.
        """
        mine = version_key(version)
        older = [one for one in self.present if version_key(one)[:2] == mine[:2] and version_key(one) <= mine]
        return max(older, key=version_key, default=None)

    def lacked_it(self, version: str) -> tuple[str, date] | None:
        """The measurement by which a kernel should not have the bug, and its day; else None.

        Of the kernels of the same series that are not newer than this one, the newest that was checked decides: it
        must have been checked without finding the bug.
        """
        if not self.absent:
            return None
        mine = version_key(version)
        checked = [one for one in (*self.present, *self.absent) if series_of(one) == series_of(version)]
        newest = max((one for one in checked if version_key(one) <= mine), key=version_key, default=None)
        if newest is None or newest in self.present:
            return None
        return newest, self.absent[newest]

    def newest_of(self, series: str) -> str | None:
        """The newest kernel of a series that was checked, or None."""
        return max(
            (one for one in (*self.present, *self.absent) if series_of(one) == series), key=version_key, default=None
        )


@dataclass(frozen=True, slots=True)
class Measured:
    """The run that measured the facts."""

    date: date
    qemu: str
    accel: str
    hugepfn: str
    scenarios: int
    cases: int


@dataclass(frozen=True, slots=True)
class Facts:
    """What was measured; empty for a folder without such a file."""

    measured: Measured | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)  # upstream version -> release, in the matrix's order
    bugs: Mapping[str, Sightings] = field(default_factory=dict)  # by the bug's id

    def version_of(self, release: str) -> str:
        """The version of a kernel with this release, if it was measured: Debian's 6.1.0-56-cloud-amd64 is 6.1.192."""
        return next((version for version, known in self.kernels.items() if known == release), release)

    def of(self, bug: str) -> Sightings:
        """The sightings of a bug; empty if no kernel was checked."""
        return self.bugs.get(bug, Sightings())

    @property
    def versions(self) -> set[str]:
        """Every kernel version that the facts name."""
        seen = {version for one in self.bugs.values() for version in (*one.present, *one.absent)}
        return seen | self.kernels.keys()


NO_FACTS = Facts()


def parse_facts(text: str) -> Facts:
    """Read the file.

    :raises UsageError: the text cannot be parsed; names the part that is wrong.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"known_bugs_seen.toml is no TOML: {error}; `make facts` writes it") from None
    given = data.pop("measured", None)
    kernels = data.pop("kernels", {})
    if given is not None:
        wrong = [key for key, kind in _MEASURED.items() if not isinstance(given.get(key), kind)]
        if wrong or given.keys() != _MEASURED.keys():
            raise UsageError(
                f"known_bugs_seen.toml: [measured] wants {', '.join(_MEASURED)}; wrong: {', '.join(wrong)}"
            )
    for version in kernels:
        version_key(version)
    return Facts(
        Measured(**given) if given else None, kernels, {bug: _sightings(bug, one) for bug, one in data.items()}
    )


def _sightings(bug: str, data: dict[str, Any]) -> Sightings:
    if data.keys() - {"present", "absent"}:
        raise UsageError(f"known_bugs_seen.toml: {bug} has {', '.join(sorted(data))}; expected present and absent")
    for version, day in [*data.get("present", {}).items(), *data.get("absent", {}).items()]:
        version_key(version)
        if not isinstance(day, date):
            raise UsageError(f"known_bugs_seen.toml: {bug}: {version} = {day!r}; expected a day such as 2026-11-26")
    return Sightings(data.get("present", {}), data.get("absent", {}))


def dump_facts(facts: Facts) -> str:
    """The text of the file, as :func:`parse_facts` reads it."""
    lines = [
        "# Which kernels have which known bugs, and the run that docs/matrix.md shows. Written by `make facts`; the",
        "# format is told in harness/verdict/seen.py. A sighting that was made by hand may be added: it is kept until",
        "# that kernel is measured again.",
    ]
    if facts.measured is not None:
        values = {key: getattr(facts.measured, key) for key in _MEASURED}
        lines += ["", "[measured]"]
        lines += [
            f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}" for key, value in values.items()
        ]
    lines += ["", "[kernels]", *(f'"{version}" = "{release}"' for version, release in facts.kernels.items())]
    for bug, seen in sorted(facts.bugs.items()):
        for name, found in (("present", seen.present), ("absent", seen.absent)):
            if found:
                lines += ["", f"[{bug}.{name}]"]
                lines += [f'"{version}" = {found[version]}' for version in sorted(found, key=version_key)]
    return "\n".join(lines) + "\n"
