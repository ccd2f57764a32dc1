"""Which commits are bad if a candidate is the culprit. Pure.

Candidates and commits are the same things and have the same numbers, oldest first: every commit between the two ends
may be the culprit, and may be tested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.uint64]
Commit = int | NDArray[np.int64]
"""The number of a commit, or an array of them."""

_BLOCK_BYTES = 1 << 24  # of unpacked bits at a time


class CommitHistory(Protocol):
    """The commits between the two ends."""

    @property
    def size(self) -> int:
        """The number of commits."""
        ...

    def blamed(self, commit: Commit) -> Mask:
        """Return the candidates of which one must be the culprit if this commit is bad."""
        ...

    def gathered(self, weights: Floats) -> Floats:
        """Return, for every commit, the sum of the weights of its :meth:`blamed` candidates.

        :param weights: one row of weights, or several.
        """
        ...

    def classes(self, testable: Mask) -> Numbers:
        """Return a number for each candidate, the same for those that no test of a testable commit tells apart."""
        ...


class LinearHistory:
    """A linear history: whatever comes after the culprit is bad."""

    def __init__(self, size: int) -> None:
        self.size = size

    def blamed(self, commit: Commit) -> Mask:
        """The commit and the ones before it."""
        return np.arange(self.size) <= np.expand_dims(commit, -1)

    def gathered(self, weights: Floats) -> Floats:
        """The running sums."""
        return np.cumsum(weights, axis=-1)

    def classes(self, testable: Mask) -> Numbers:
        """A class ends with each testable commit, of which a test separates it from those after it."""
        return np.concatenate([[0], np.cumsum(testable)[:-1]]).astype(np.uint64)


class MergedHistory:
    """A history with merges: bad are the culprit and its descendants.

    :param parents: of each commit, the numbers of those of its parents that are candidates; all of them smaller.
    """

    def __init__(self, parents: Sequence[Sequence[int]]) -> None:
        self.size = len(parents)
        self._bits = np.zeros((self.size, (self.size + 7) // 8), np.uint8)  # row: a commit; bit: an ancestor or itself
        for commit, above in enumerate(parents):
            for one in above:
                self._bits[commit] |= self._bits[one]
            self._bits[commit, commit // 8] |= 1 << (commit % 8)

    def blamed(self, commit: Commit) -> Mask:
        """The commit and its ancestors."""
        return self._unpacked(self._bits[commit])

    def gathered(self, weights: Floats) -> Floats:
        """Add them up; candidates without weight cost nothing."""
        found = np.zeros_like(weights)
        (wanted,) = np.nonzero(np.any(np.atleast_2d(weights), axis=0))
        for rows in self._blocks():
            found[..., rows] = weights[..., wanted] @ self._unpacked(self._bits[rows])[:, wanted].T
        return found

    def classes(self, testable: Mask) -> Numbers:
        """Add up a random number of each testable descendant; two different sets have one chance in 2**63."""
        numbers = np.random.default_rng(0).integers(0, 1 << 63, self.size, np.uint64)
        numbers[~testable] = 0
        found = np.zeros(self.size, np.uint64)
        for rows in self._blocks():
            found += numbers[rows] @ self._unpacked(self._bits[rows])
        return found

    def _blocks(self) -> Iterator[slice]:
        rows = max(1, _BLOCK_BYTES // max(1, self.size))
        return (slice(first, first + rows) for first in range(0, self.size, rows))

    def _unpacked(self, bits: NDArray[np.uint8]) -> Mask:
        return np.unpackbits(bits, axis=-1, count=self.size, bitorder="little").view(np.bool_)


class MendedHistory:
    """A history in which something was mended: bad are the commits that the culprit is not an ancestor of."""

    def __init__(self, history: CommitHistory) -> None:
        self.size = history.size
        self._history = history

    def blamed(self, commit: Commit) -> Mask:
        """The candidates that are not in this commit."""
        return ~self._history.blamed(commit)

    def gathered(self, weights: Floats) -> Floats:
        """The rest of the whole sum."""
        found: Floats = np.sum(weights, axis=-1, keepdims=True) - self._history.gathered(weights)
        return found

    def classes(self, testable: Mask) -> Numbers:
        """The same: a test tells the same candidates apart."""
        return self._history.classes(testable)


def history_of(parents: Sequence[Sequence[int]]) -> CommitHistory:
    """Return the simplest history with these parents."""
    if all(list(above) == ([number - 1] if number else []) for number, above in enumerate(parents)):
        return LinearHistory(len(parents))
    return MergedHistory(parents)
