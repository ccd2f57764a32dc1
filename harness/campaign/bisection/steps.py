"""What is bisected: the commits of a git tree, the patches of a series, or the stock kernels of the archive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from harness.archive.offers import Offer
from harness.archive.versions import check_wanted, compare, matches, sort_key, version_key
from harness.bisection.history import CommitHistory, MendedHistory, history_of
from harness.campaign.series import PatchStep, git_lines
from harness.errors import UsageError
from harness.events import Say
from harness.kernel import available
from harness.kernel.build import BuiltSource, are_built

_ID_DIGITS = 40
_ROW = "commit:"  # in front of the lines of the log that are no names of files


@dataclass(frozen=True)
class Course:
    """Everything between two ends."""

    good: PatchStep
    bad: PatchStep
    steps: tuple[PatchStep, ...]
    """The candidates, oldest first. The last one is the newer end if that is a candidate itself."""
    parents: tuple[tuple[int, ...], ...]
    fixed: bool
    """Whether the bad end is the older one: what is looked for was mended."""
    fetched: bool = False
    """Whether the kernels are fetched, not built."""
    cached: tuple[bool, ...] = ()
    """Which steps have a kernel in the cache; empty if none is known to have one."""
    wide: tuple[int, ...] = ()
    """For each step, how many up to it change what most files depend on, such as a header; empty if none is known."""

    @property
    def history(self) -> CommitHistory:
        """The candidates as a history."""
        history = history_of(self.parents)
        return MendedHistory(history) if self.fixed else history


def short(name: str) -> str:
    """The name of a step as it is shown: the first digits of a commit, everything else as it is."""
    return name[:12] if len(name) == _ID_DIGITS else name


def of_tree(tree: str, good: str, bad: str, paths: Sequence[str], fixed: bool) -> Course:
    """Return the commits of a git tree between two revisions.

    :param paths: only commits that touch them, as for ``git bisect start``.
    :raises UsageError: there is no such tree or revision, or the older end is not an ancestor of the newer one.
    """
    ends = [_commit(tree, revision) for revision in (good, bad)]
    older, newer = (one.name for one in (reversed(ends) if fixed else ends))
    if (base := git_lines(tree, "merge-base", older, newer)) != [older]:
        there = f"their merge base is {' '.join(base) or 'none'}"
        raise UsageError(f"{older[:12]} is not an ancestor of {newer[:12]}; {there}")
    shown = ("--topo-order", "--reverse", "--parents", "--full-diff", "--name-only", f"--format={_ROW}%H|%P|%T|%s")
    rows, files = [], list[list[str]]()
    for line in git_lines(tree, "log", *shown, f"{older}..{newer}", "--", *paths):
        if line.startswith(_ROW):
            rows.append(line.removeprefix(_ROW).split("|", 3))
            files.append([])
        elif line:
            files[-1].append(line)
    if not rows:
        raise UsageError(f"there is no commit between {older[:12]} and {newer[:12]}")
    numbers = {commit: number for number, (commit, _, _, _) in enumerate(rows)}
    steps = tuple(PatchStep(commit, subject, f"tree:{tree}@{commit}") for commit, _, _, subject in rows)
    parents = tuple(tuple(numbers[one] for one in above.split() if one in numbers) for _, above, _, _ in rows)
    cached = tuple(are_built(BuiltSource.parse(ends[0].spec).recipe, [contents for _, _, contents, _ in rows]))
    wide = tuple(itertools.accumulate(any(map(_is_wide, names)) for names in files))
    return Course(ends[0], ends[1], steps, parents, fixed, cached=cached, wide=wide)


def _is_wide(file: str) -> bool:
    return file.endswith(".h") or file.rpartition("/")[2].startswith(("Kconfig", "Makefile"))


def _commit(tree: str, revision: str) -> PatchStep:
    wanted = ("--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    (commit,) = git_lines(tree, "rev-parse", *wanted)
    return PatchStep(commit, " ".join(git_lines(tree, "log", "-1", "--format=%s", commit)), f"tree:{tree}@{commit}")


def of_series(steps: Sequence[PatchStep], fixed: bool) -> Course:
    """Return the patches of a series after its base."""
    base, *patches = steps
    good, bad = (patches[-1], base) if fixed else (base, patches[-1])
    return Course(good, bad, tuple(patches), _line(len(patches)), fixed)


def of_debian(good: str, bad: str, fixed: bool, say: Say | None) -> Course:
    """Return the stock kernels between two versions that the mirror or the cache has, in any suite.

    :raises UsageError: there is no such version, or the ends are the wrong way round.
    """
    offers = sorted(available(say), key=lambda offer: version_key(offer.version))
    ends = [_offer(word, offers) for word in (good, bad)]
    older, newer = reversed(ends) if fixed else ends
    if compare(older.version, newer.version) >= 0:
        raise UsageError(
            f"{older.version} is not older than {newer.version}; with --fixed, the bad version is the older one"
        )
    between = [one for one in offers if compare(older.version, one.version) < 0 <= compare(newer.version, one.version)]
    steps = tuple(map(_step, between))
    cached = tuple(one.cached for one in between)
    return Course(_step(ends[0]), _step(ends[1]), steps, _line(len(steps)), fixed, fetched=True, cached=cached)


def _offer(word: str, offers: Sequence[Offer]) -> Offer:
    wanted = check_wanted(word)
    found = [offer for offer in offers if matches(wanted, offer)]
    if not found:
        there = ", ".join(offer.version for offer in offers)
        raise UsageError(f"neither the mirror nor the cache has {word}; they have {there}")
    return max(found, key=sort_key)


def _step(offer: Offer) -> PatchStep:
    return PatchStep(offer.version, f"{offer.package} of {offer.suite}", f"debian:{offer.version}")


def _line(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple((number - 1,) if number else () for number in range(size))
