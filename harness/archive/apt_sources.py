"""apt's sources as values: both file formats in, the Debian archives that we need out. Pure.

apt itself can list its sources (``apt-get indextargets``), but only those that it has already fetched, and without the
keys that sign them. On a new machine it lists nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_NO = ("no", "false", "0", "without", "off", "disable")
_DEBIAN_SUITE = re.compile(
    r"(bullseye|bookworm|trixie|forky|duke|sid|experimental|rc-buggy|(old)*stable|testing|unstable)"
    r"(-(backports(-sloppy)?|updates|security|proposed-updates))?"
)
# Suites to try besides the configured ones; a suite that the mirror does not have costs one request.
_MAIN_SUITES = (
    *("bookworm", "bookworm-backports", "trixie", "trixie-backports", "forky", "forky-backports"),
    *("sid", "experimental"),
)
_SECURITY_SUITES = ("bookworm-security", "trixie-security", "forky-security")


@dataclass(frozen=True)
class Archive:
    """One suite of one mirror."""

    uri: str  # ends with a slash
    suite: str
    signed_by: str | None = None  # keyring path, or an embedded key (several lines); None for apt's default keys
    check_valid_until: bool = True  # False if the host's own entry says so, as for snapshots

    @property
    def is_security(self) -> bool:
        """Whether it belongs to the security archive, which is a separate tree on mirrors."""
        return self.suite.endswith("-security")

    def stanza(self) -> str:
        """This archive as deb822 text; amd64 kernels need only the Packages of main."""
        lines = ["Types: deb", f"URIs: {self.uri}", f"Suites: {self.suite}", "Components: main"]
        lines += ["Architectures: amd64", "Targets: Packages"]
        if self.signed_by:
            lines.append(
                f"Signed-By: {self.signed_by}" if "\n" not in self.signed_by else f"Signed-By:{self.signed_by}"
            )
        if not self.check_valid_until:
            lines.append("Check-Valid-Until: no")
        return "\n".join(lines) + "\n"


def parse_sources(files: Iterable[tuple[str, str]]) -> list[Archive]:
    """The binary archives with a main component in apt's files, in order.

    :param files: ``(name, text)``; ``*.sources`` is deb822, all others have one entry per line (sources.list(5)).
    """
    found: dict[Archive, None] = {}
    for name, text in files:
        entries = _deb822(text) if name.endswith(".sources") else _one_line(text)
        for entry in entries:
            if "deb" not in entry["types"].split() or "main" not in entry["components"].split():
                continue
            check = entry.get("check-valid-until", "yes").lower() not in _NO
            for uri in entry["uris"].split():
                for suite in entry["suites"].split():
                    found[Archive(uri.rstrip("/") + "/", suite, entry.get("signed-by"), check)] = None
    return list(found)


def _deb822(text: str) -> list[dict[str, str]]:
    entries = []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", lines):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] = fields.get(name, "") + "\n" + line
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if (
            fields.get("enabled", "yes").lower() not in _NO
            and {"types", "uris", "suites", "components"} <= fields.keys()
        ):
            entries.append(fields)
    return entries


def _one_line(text: str) -> list[dict[str, str]]:
    entries = []
    for line in text.splitlines():
        match = re.match(r"\s*(deb)\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)\s+([^#]+)", line)
        if match is None:
            continue
        entry = {"types": match[1], "uris": match[3], "suites": match[4], "components": match[5]}
        for option in (match[2] or "").split():
            name, _, value = option.partition("=")
            entry[name.lower()] = value
        entries.append(entry)
    return entries


def debian_archives(configured: Iterable[Archive], origins: Mapping[tuple[str, str], str]) -> list[Archive]:
    """The configured archives that belong to Debian.

    :param origins: Origin by (uri, suite) of the archives that the host's apt has fetched. Any other archive counts as
        Debian's if it has the name of a Debian suite and no key but Debian's; its Origin is checked later.
    """
    return [
        archive
        for archive in configured
        if archive.uri.partition(":")[0] != "cdrom"
        and _DEBIAN_SUITE.fullmatch(archive.suite)
        and is_debian(origins.get((archive.uri, archive.suite)) or ("Debian" if _has_debian_key(archive) else ""))
    ]


def is_debian(origin: str) -> bool:
    """Whether an archive's Origin is Debian's: "Debian", "Debian Backports"."""
    return origin.split()[:1] == ["Debian"]


def _has_debian_key(archive: Archive) -> bool:
    return archive.signed_by is None or "debian" in archive.signed_by.rpartition("/")[2] or "\n" in archive.signed_by


def candidates(debian: Iterable[Archive], extra: Iterable[str] = ()) -> list[Archive]:
    """The archives to ask: the host's own first, then the other suites of the same mirrors.

    :param extra: requested suites that are not among the usual ones.
    """
    found = {archive.suite: archive for archive in reversed(list(debian))}
    own = list(reversed(found.values()))
    first_main = next((a for a in own if not a.is_security), None)
    first_security = next((a for a in own if a.is_security), None)
    extra = list(extra)
    for base, usual in ((first_main, _MAIN_SUITES), (first_security, _SECURITY_SUITES)):
        if base is None:
            continue
        wanted = [*usual, *(suite for suite in extra if suite.endswith("-security") == base.is_security)]
        for suite in wanted:
            if suite not in found:
                found[suite] = Archive(base.uri, suite, base.signed_by, base.check_valid_until)
                own.append(found[suite])
    return own
