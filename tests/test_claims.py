"""Tests for claims: all are recorded, a broken one does not hide the next, and errors of hugepfn are no claims."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.claims import Claims
from harness.errors import ClaimFailed, KernelDied, MachineryError
from harness.pagetable import Bits
from harness.results import outcome_of
from harness.verdict import Claim, Outcome, ScenarioResult, words

BY = "mm/huge_memory.c copy_huge_pud()"


def test_a_claim_that_holds() -> None:
    claims = Claims()
    with claims("the child keeps its dirty bit", BY):
        assert claims.made == [], "a claim is recorded when its block has ended"
    assert claims.made == [Claim("the child keeps its dirty bit", Outcome.PASSED, BY)]
    assert claims.broken == []
    claims.raise_if_broken()


def test_a_broken_claim_does_not_hide_the_next() -> None:
    claims = Claims()
    with claims("first", BY):
        raise AssertionError("D=0")
    with claims("second"):
        pass
    with claims("third", by="fork"):
        raise ClaimFailed("no entry")
    assert claims.made == [
        Claim("first", Outcome.FAILED, BY, "D=0"),
        Claim("second", Outcome.PASSED, ""),
        Claim("third", Outcome.FAILED, "fork", "no entry"),
    ]
    assert [claim.name for claim in claims.broken] == ["first", "third"]


def test_an_assertion_in_hugepfn_itself_is_no_broken_claim() -> None:
    def broken() -> None:
        raise AssertionError("RAM is a file")

    claims = Claims()
    with claims("raised here", BY):
        broken()
    # Like code of hugepfn itself: the compiler writes this file name into the traceback.
    source = Path(Claims.__init__.__code__.co_filename).with_name("machine") / "template.py"
    there: dict[str, Callable[[], None]] = {}
    exec(compile("def broken():\n    assert False, 'RAM is a file'\n", str(source), "exec"), there)
    with pytest.raises(AssertionError, match="RAM is a file") as error, claims("raised there", BY):
        there["broken"]()
    assert [claim.name for claim in claims.made] == ["raised here"]
    assert outcome_of(error.value, SimpleNamespace(skipped=False)) is Outcome.ERROR  # type: ignore[arg-type]


def test_a_claim_ends_at_its_first_broken_assertion() -> None:
    claims = Claims()
    reached = []
    with claims("two assertions"):
        reached.append("first")
        assert reached == ["second"], "a claim must stop at its first broken assertion"
        reached.append("never")
    assert reached == ["first"]
    assert claims.made[0].message == "a claim must stop at its first broken assertion: expected second, got first"


def test_the_end_names_every_broken_claim_and_its_function() -> None:
    claims = Claims()
    with claims("first", BY):
        raise AssertionError("D=0")
    with claims("second"):
        raise AssertionError("W=0")
    with claims("third"):
        pass
    with pytest.raises(ClaimFailed) as caught:
        claims.raise_if_broken()
    assert str(caught.value) == f"BROKEN first [{BY}]\n       D=0\nBROKEN second\n       W=0"


def test_a_kernel_that_dies_breaks_its_claim_and_ends_the_test() -> None:
    claims = Claims()
    with pytest.raises(KernelDied), claims("survives", BY):
        raise KernelDied("Oops: 0000")
    assert claims.made == [Claim("survives", Outcome.FAILED, BY, "Oops: 0000")]


@pytest.mark.parametrize(
    "error", [MachineryError("QEMU is gone"), KeyError("typo"), KeyboardInterrupt(), pytest.skip.Exception("no THP")]
)
def test_an_error_of_the_machinery_is_no_broken_claim(error: BaseException) -> None:
    claims = Claims()
    with pytest.raises(type(error)), claims("unknown", BY):
        raise error
    assert claims.made == []
    claims.raise_if_broken()


# --- bits that a CPU may set by itself ---------------------------------------------------------------


def test_a_bit_that_the_cpu_may_have_set_does_not_break_a_claim() -> None:
    claims = Claims(early=lambda: Bits.A)
    with claims("the child's entry is old", BY, clear=Bits.A):
        raise AssertionError("A=1")
    with claims("the child's entry is clean", BY, clear=Bits.D):
        raise AssertionError("D=1")
    with claims("the child's other entry is old", BY, clear=Bits.A):
        pass
    assert [one.outcome for one in claims.made] == [Outcome.SKIPPED, Outcome.FAILED, Outcome.PASSED]
    result = ScenarioResult("fork", "pud", Outcome.PASSED, claims=(claims.made[0],))
    ((_, name, message),) = words.claims(result)
    assert (name, message) == ("the child's entry is old", words.EARLY_BIT)


def test_without_early_bits_every_claim_is_checked_fully() -> None:
    claims = Claims()
    with claims("the child's entry is old", BY, clear=Bits.A):
        raise AssertionError("A=1")
    assert claims.made == [Claim("the child's entry is old", Outcome.FAILED, BY, "A=1")]
