"""Sequences are made short: only what fails in the same way counts."""

from hypothesis import given
from hypothesis import strategies as st

from harness.model.draw import draw
from harness.model.operation import PTE, PUD, Operation, Verb
from harness.model.shrink import Sequence, shrink, specified, until


def _maps_then_moves(sequence: Sequence) -> bool:
    """A bug of two operations: an mremap() after a mapping of 1G or more."""
    large = [index for index, op in enumerate(sequence) if op.verb is Verb.MAP and op.size >= PUD]
    moves = [index for index, op in enumerate(sequence) if op.verb is Verb.MOVE]
    return bool(large and moves) and large[0] < moves[-1]


def test_only_the_operations_that_matter_are_left() -> None:
    found = next(drawn for number in range(1000) if _maps_then_moves(drawn := draw(1, number)))
    short = shrink(found, _maps_then_moves)
    assert len(short) == 2
    assert short[0] == Operation(0, Verb.MAP, short[0].at, PUD, 0, "rw")


@given(st.integers(0, 10_000))
def test_what_is_left_still_fails_and_is_specified(number: int) -> None:
    def fails(sequence: Sequence) -> bool:
        return sum(op.verb is Verb.WRITE for op in sequence) >= 2

    drawn = draw(3, number)
    if fails(drawn):
        short = shrink(drawn, fails)
        assert fails(short)
        assert specified(short)
        assert len(short) <= len(drawn)


def test_no_more_is_run_than_the_budget() -> None:
    runs = []

    def fails(sequence: Sequence) -> bool:
        runs.append(sequence)
        return True

    shrink(draw(1, 1, 60), fails, budget=5)
    assert len(runs) <= 5


def test_a_single_operation_stays() -> None:
    one = (Operation(0, Verb.MAP, 0, PTE, 0, "rw"),)
    assert shrink(one, lambda _sequence: True) == one


def test_a_race_is_not_cut_from_its_two_operations() -> None:
    sequence = tuple(
        Operation(0, verb, size=PTE)
        for verb in (Verb.MAP, Verb.CLEAR, Verb.RACE, Verb.WRITE, Verb.READ, Verb.PEEK, Verb.WRITE)
    )
    lengths = [len(until(sequence, step)) for step in range(1, len(sequence) + 1)]
    assert lengths == [1, 2, 5, 5, 5, 6, 7]
    assert until(sequence, 4) == sequence[:5]
