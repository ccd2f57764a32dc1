"""Access to the host's Debian mirror through apt with separate state: needs no root and installs nothing.

apt checks every signature (the Release file against Debian's keyring, the index against the Release file, a package
against the index), uses the host's proxy and TLS settings, and never sees the host's lists or packages.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.archive.apt_sources import Archive, candidates, debian_archives, is_debian, parse_sources
from harness.archive.offers import Offer, PackageFile, SourceOffer, parse_packages, parse_source_packages
from harness.errors import MachineryError
from harness.events import Note, Say, tell
from harness.host import cache
from harness.host.process import check_room, find_program, run

INDEX_TTL_S = 24 * 3600.0
_SCHEMA = 2
_UPDATE_TIMEOUT_S, _DOWNLOAD_TIMEOUT_S, _ASK_TIMEOUT_S = 600.0, 1800.0, 60.0
_PROBE_TIMEOUT_S = 15
_ROOM_BYTES = 150_000_000  # the lists of twelve suites, compressed, are 90 MB
_KEYRINGS = ("/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp")

# Read after the host's own configuration, of which only proxies and certificates stay in effect.
_CONFIGURATION = """\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{state}/sources.list.d/";
Dir::State::lists "{state}/lists/";
Dir::State::status "{state}/status";
Dir::Cache "{state}/cache/";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
pkgCacheFile::Generate "false";
APT::Sandbox::User "root";
APT::Get::List-Cleanup "true";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::AllowReleaseInfoChange "true";
Acquire::GzipIndexes "true";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::Retries "1";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
"""


class MirrorError(MachineryError):
    """No suite of the mirror could be fetched."""


class DownloadError(MachineryError):
    """A package that the index names could not be fetched."""


@dataclass(frozen=True)
class Index:
    """The mirror's offers when it was last asked."""

    fetched_at: float  # in seconds since the epoch
    suites: tuple[str, ...]  # suites that answered, now or before
    extra: tuple[str, ...]  # suites requested by name, beyond the usual ones
    left_out: dict[str, str]  # suite: why it is not in suites
    offers: tuple[Offer, ...]  # the host's own suites first
    sources: tuple[SourceOffer, ...] = ()  # in the same order

    @property
    def age_s(self) -> float:
        """Seconds since the mirror was asked; infinite if the clock was set back since then."""
        age_s = time.time() - self.fetched_at
        return age_s if age_s >= 0 else float("inf")


def mirror_sources(extra: Iterable[str] = ()) -> list[Archive]:
    """The suites to ask: all of the host's Debian mirror, whether or not they are configured.

    :raises MachineryError: apt is missing, or its configuration names no Debian mirror.
    """
    where = _apt_places()
    files = [where["LIST"]]
    if where["PARTS"].is_dir():
        files += sorted(p for p in where["PARTS"].iterdir() if p.suffix in (".list", ".sources"))
    texts = [(file.name, file.read_text(errors="replace")) for file in files if file.is_file()]
    keyring = next((name for name in _KEYRINGS if Path(name).is_file()), None)
    origins = {place: _origin(stem) for place, stem in _list_stems([], where["LISTS"]).items()}
    debian = debian_archives(parse_sources(texts), origins)
    found = candidates((Archive(a.uri, a.suite, a.signed_by or keyring, a.check_valid_until) for a in debian), extra)
    if not found:
        raise MachineryError(
            "the apt configuration of this host names no Debian mirror; use --kernel host, the path of a kernel, or "
            "tree:PATH"
        )
    return found


def _apt_places() -> dict[str, Path]:
    """The folders in which the host's apt keeps its sources and lists."""
    wanted = ["LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d", "LISTS", "Dir::State::lists/d"]
    answer = run([find_program("apt-config", "apt"), "shell", *wanted], timeout_s=_ASK_TIMEOUT_S)
    words = (word.partition("=") for word in shlex.split(answer.stdout.decode(errors="replace")))
    return {name: Path(value) for name, _, value in words}


def _list_stems(options: Sequence[str], lists: Path) -> dict[tuple[str, str], Path]:
    """``{(uri, suite): file}``: where apt keeps what it fetched, without ``_InRelease``,
    ``_main_binary-amd64_Packages``.

    Uses --print-uris, which is fast: indextargets first builds apt's whole package cache, 2.4 s for ten suites.
    """
    argv: list[str | Path] = [find_program("apt-get", "apt"), *options, "update", "--print-uris"]
    lines = run(argv, timeout_s=_ASK_TIMEOUT_S, check=False).stdout.decode(errors="replace")
    found = re.findall(r"^'(\S+/)dists/([^/\s]+)/InRelease' (\S+)_InRelease ", lines, re.MULTILINE)
    return {(uri, suite): lists / stem for uri, suite, stem in found}


def _origin(stem: Path) -> str:
    """The Origin of a Release file that apt has fetched and checked; empty if there is none."""
    for suffix in ("_InRelease", "_Release"):
        with contextlib.suppress(OSError):
            text = stem.with_name(stem.name + suffix).read_text(errors="replace")
            match = re.search(r"^Origin: *(.*)$", text, re.MULTILINE)
            return match[1].strip() if match else "none"
    return ""


def _state() -> Path:
    return cache.root() / "apt"


def load_index() -> Index | None:
    """The index as last fetched, however old; None if there is none."""
    note = cache.read_note(_state() / "index.json")
    if note is None or note.get("schema") != _SCHEMA:
        return None
    try:
        offers = tuple(_offer_from(offer) for offer in note["offers"])
        sources = tuple(SourceOffer(**{**s, "file": PackageFile(**s["file"])}) for s in note["sources"])
        suites, extra = tuple(note["suites"]), tuple(note["extra"])
        return Index(float(note["fetched_at"]), suites, extra, dict(note["left_out"]), offers, sources)
    except (KeyError, TypeError, ValueError):
        return None  # written by another version: ask again


def _offer_from(note: dict[str, Any]) -> Offer:
    files = tuple(PackageFile(**file) for file in note["files"])
    return Offer(**{**note, "files": files, "gone": tuple(note["gone"])})


def refresh(extra: Iterable[str] = (), say: Say | None = None) -> Index:
    """Ask the mirror again and store its answer.

    :param extra: suites beyond the usual ones.
    :raises MirrorError: no suite answered.
    :raises MachineryError: apt is missing or failed otherwise.
    """
    started = time.time()
    with cache.locked("apt", "asks the mirror for its kernels", say):
        before = load_index()
        extra = tuple(dict.fromkeys([*(before.extra if before else ()), *extra]))
        if before and before.fetched_at >= started and set(extra) <= set(before.extra):
            return before  # the process that we waited for has just asked
        archives = mirror_sources(extra)
        options = _write_state(archives)
        if shutil.disk_usage(_state()).free < _ROOM_BYTES:  # apt 2.6 hangs if its lists fill the disk (measured)
            raise MachineryError(
                f"no space left for {_state()}; free some, or set HUGEPFN_CACHE_DIR to a folder on another disk"
            )
        tell(say, Note(f"asking the Debian mirror for its kernels ({len(archives)} suites)"))
        _probe(options, archives[0])
        argv: list[str | Path] = [find_program("apt-get", "apt"), *options, "-o", "Acquire::Retries=0", "-q", "update"]
        update = run(argv, timeout_s=_UPDATE_TIMEOUT_S, check=False)
        failures = parse_failures(update.stdout.decode(errors="replace"))
        reasons = {a.suite: failures[a.uri, a.suite] for a in archives if (a.uri, a.suite) in failures}
        if len(reasons) == len(archives):
            raise MirrorError(f"the Debian mirror cannot be reached: {next(iter(reasons.values()))}")
        check_room(update, "apt")
        if update.status != 0 and not reasons:
            raise MachineryError(f"apt-get update failed (exit status {update.status}): {update.words}")
        index = _read_lists(options, archives, reasons, extra)
        cache.write_note(_state() / "index.json", {"schema": _SCHEMA, **asdict(index)})
        return index


def state_options(say: Say | None = None) -> list[str]:
    """Options that make apt's programs use our state, in which nothing is installed.

    :raises MachineryError: the mirror has never been asked, and does not answer now.
    """
    if load_index() is None:
        refresh(say=say)
    # apt-cache needs its package cache in a file (apt 2.6: "Could not open file" otherwise).
    return [*_write_state(), "-o", "Dir::Cache::pkgcache=packages.bin", "-o", "pkgCacheFile::Generate=true"]


def _probe(options: Sequence[str], archive: Archive) -> None:
    """Fetch one small file first, because a mirror that drops packets would cost one timeout per suite.

    :raises MirrorError: the mirror does not answer.
    """
    helper = find_program("apt-helper", "apt")
    limits = [word for kind in ("http", "https") for word in ("-o", f"Acquire::{kind}::Timeout={_PROBE_TIMEOUT_S}")]
    with tempfile.TemporaryDirectory(prefix="probe.", dir=_state()) as folder:
        wanted = [f"{archive.uri}dists/{archive.suite}/InRelease", f"{folder}/InRelease"]
        argv: list[str | Path] = [helper, *options, *limits, "-o", "Acquire::Retries=0", "download-file", *wanted]
        probe = run(argv, timeout_s=_ASK_TIMEOUT_S, check=False)
    if probe.status != 0 and "404" not in probe.words:
        raise MirrorError(f"the Debian mirror cannot be reached: {probe.words}")


def _write_state(archives: Iterable[Archive] | None = None) -> list[str]:
    """Write our apt state, with these sources if given, and return the options that make apt use it."""
    state = _state()
    with cache.room_errors(state):
        for folder in ("sources.list.d", "lists/partial", "cache/archives/partial"):
            (state / folder).mkdir(parents=True, exist_ok=True)
        (state / "status").touch()
        (state / "apt.conf").write_text(_CONFIGURATION.replace("{state}", str(state)))
        if archives is not None:
            text = "\n".join(archive.stanza() for archive in archives)
            (state / "sources.list.d/hugepfn.sources").write_text(text)
    return ["-c", str(state / "apt.conf")]


def parse_failures(output: str) -> dict[tuple[str, str], str]:
    """``{(uri, suite): reason}`` of the suites that ``apt-get -q update`` reports as not fetched."""
    failures: dict[tuple[str, str], str] = {}
    lines = output.splitlines()
    for line, reason in zip(lines, [*lines[1:], ""], strict=True):
        if match := re.match(r"Err:\d+ (\S+) ([^\s/]+)(?:/\S+)? (?:.*)(?:Release|Packages)", line):
            failures[match[1].rstrip("/") + "/", match[2]] = _reason(reason)
    return failures


def _reason(line: str) -> str:
    words = re.sub(r"\s+", " ", line.partition("[IP:")[0]).strip(" :")
    return words if words and not words.startswith(("Err:", "Reading package")) else "no reason given"


def _packages(options: Sequence[str], suite: str, stem: Path, reasons: dict[str, str]) -> bytes | None:
    """The Packages file of a suite; None if it was not fetched, or is not Debian's, which is added to the reasons."""
    origin = _origin(stem)
    if not origin:
        return None
    if not is_debian(origin):
        reasons[suite] = f"its Release file says Origin: {origin}, not Debian"
        return None
    files = sorted(stem.parent.glob(f"{stem.name}_main_binary-amd64_Packages*"))
    if not files:
        return None if suite in reasons else b""  # its Release file arrived, its Packages did not
    argv: list[str | Path] = [find_program("apt-helper", "apt"), *options, "cat-file", *files]
    return run(argv, timeout_s=_ASK_TIMEOUT_S).stdout


def _read_lists(
    options: Sequence[str], archives: Sequence[Archive], reasons: dict[str, str], extra: tuple[str, ...]
) -> Index:
    """The index of what apt has fetched; a suite that is not Debian's is added to the reasons."""
    offers: dict[str, list[Offer]] = {}
    sources: dict[str, list[SourceOffer]] = {}
    for (uri, suite), stem in _list_stems(options, _state() / "lists").items():
        packages = _packages(options, suite, stem, reasons)
        if packages is None:
            continue
        offers.setdefault(suite, []).extend(parse_packages(packages, uri, suite))
        sources.setdefault(suite, []).extend(parse_source_packages(packages, uri, suite))
    here = tuple(a.suite for a in archives if a.suite in offers)
    left_out = {suite: reason for suite, reason in reasons.items() if suite not in offers}
    kept = tuple(suite for suite in extra if suite in offers)
    found = tuple(offer for suite in here for offer in offers[suite])
    return Index(time.time(), here, kept, left_out, found, tuple(o for suite in here for o in sources[suite]))


def download(files: Iterable[PackageFile], folder: Path) -> list[Path]:
    """Fetch packages; apt compares each with the hash of the signed index.

    :raises DownloadError: the network or the mirror failed, or a package does not match the index.
    :raises MachineryError: there is no room, or it takes too long.
    """
    options = _write_state()
    helper = find_program("apt-helper", "apt")
    fetched = []
    for file in files:
        target = folder / f"{file.package}.deb"
        argv: list[str | Path] = [helper, *options, "download-file", file.uri, target, f"SHA256:{file.sha256}"]
        finished = run(argv, timeout_s=_DOWNLOAD_TIMEOUT_S, cwd=folder, check=False)
        if finished.status != 0:
            check_room(finished, "apt")
            raise DownloadError(finished.words)
        fetched.append(target)
    return fetched
