"""Operations of the explorer as words and as lines."""

import pytest

from harness.errors import UsageError
from harness.model.draw import draw
from harness.model.operation import BY_A_THREAD, OTHER_THREAD, PMD, PUD, Backing, Operation, Verb, size_words


def test_a_word_is_read_as_it_was_written() -> None:
    drawn = {op for number in range(200) for op in draw(1, number, 10, tuple(Verb))}
    assert {op.verb for op in drawn} == set(Verb)
    for op in drawn:
        assert Operation.parse(op.word()) == op


@pytest.mark.parametrize("word", ["", "0:map", "0:fly:0:0:0:bar:", "0:map:x:0:0:bar:rw", "0:map:0:0:0:disk:rw"])
def test_a_word_that_is_no_operation_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="is not an operation; expected PROCESS:VERB:AT:SIZE:TO:MEMORY:HOW"):
        Operation.parse(word)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0"), (4096, "4K"), (PMD, "2M"), (PUD + PMD + 4096, "1G+2M+4K"), (PUD - 4096, "1023M+1020K")],
)
def test_sizes_are_told_in_the_largest_units(size: int, words: str) -> None:
    assert size_words(size) == words


def test_a_line_says_what_is_done() -> None:
    assert str(Operation(0, Verb.MAP, PUD, PMD, 4096, "rw")) == "p0: mmap(1G, 2M, rw, bar from 4K)"
    assert str(Operation(0, Verb.MAP, 0, PMD, 0, "r", Backing.ANON)) == "p0: mmap(0, 2M, r, anon)"
    assert str(Operation(0, Verb.WRITE, PMD, how=OTHER_THREAD)) == "p0: write(2M), other thread"
    assert str(Operation(1, Verb.FORK, to=2)) == "p1: fork() makes p2"
    assert str(Operation(1, Verb.MOVE, 0, PMD, PUD)) == "p1: mremap(0, 2M to 1G)"
    assert str(Operation(1, Verb.ADVISE, 0, PMD, how="cold")) == "p1: madvise(0, 2M, cold)"


def test_another_thread_is_drawn_only_where_there_is_a_second_vcpu() -> None:
    alone = [op for number in range(100) for op in draw(1, number, 10)]
    assert not any(op.needs_two_vcpus for op in alone)
    racing = [op for number in range(100) for op in draw(1, number, 10, tuple(Verb))]
    accesses = [op for op in racing if op.verb in BY_A_THREAD]
    other = [op for op in accesses if op.how == OTHER_THREAD]
    assert 0.2 < len(other) / len(accesses) < 0.6
    assert {op.verb for op in racing if op.how == OTHER_THREAD} == set(BY_A_THREAD)
