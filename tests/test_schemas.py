"""Checks that docs/schemas/ are valid schemas, have the versions and words of the code, and refuse wrong outputs.

Real outputs are checked where tests make them: ``grep -rn schemas.check tests``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from harness.benchmark import bench
from harness.coverage import report
from harness.explorer import groups
from harness.machine.machine import Origin
from harness.pagetable import Bits
from harness.pagetable.observation import LEVEL_LABELS
from harness.verdict import claims, differences, table
from harness.verdict.claims import ClaimKind, Outcome
from harness.verdict.differences import What
from harness.verdict.log import complaints
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.troubles import EndKind
from harness.verdict.table import Mark
from tests import schemas

ROOT = Path(__file__).resolve().parents[1]
RUN: dict[str, Any] = {"schema": "hugepfn-run", "version": claims.VERSION, "results": []}
RUN |= {"kernel": {"spec": "debian:6.12", "release": None, "config_hash": None}}


def test_each_schema_is_valid_and_has_the_current_version() -> None:
    written = {one.SCHEMA: one.VERSION for one in (claims, table, differences, bench, complaints, groups, report)}
    assert {name: one["properties"]["version"]["const"] for name, one in schemas.SCHEMAS.items()} == written
    for one in schemas.SCHEMAS.values():
        Draft202012Validator.check_schema(one)


def test_enumerations_match_the_code() -> None:
    run, matrix, compare = (schemas.SCHEMAS[one.SCHEMA] for one in (claims, table, differences))
    parts = run["$defs"]
    assert parts["result"]["properties"]["outcome"]["enum"] == [one.value for one in Outcome]
    assert parts["claim"]["properties"]["kind"]["enum"] == [one.value for one in ClaimKind]
    assert parts["observation"]["properties"]["bits"]["items"]["enum"] == [one.name for one in Bits]
    assert set(parts["observation"]["properties"]["level"]["enum"]) == set(LEVEL_LABELS)
    assert run["properties"]["origin"]["enum"] == [*(one.value for one in Origin), None]
    report = schemas.SCHEMAS[complaints.SCHEMA]["$defs"]["report"]["properties"]
    assert report["kind"]["enum"] == [one.value for one in ComplaintKind]
    told = parts["result"]["properties"]
    complaint = told["kernel"]["items"]["properties"]["complaints"]["items"]["properties"]
    assert complaint["kind"]["enum"] == [one.value for one in ComplaintKind]
    assert told["end"]["properties"]["kind"]["enum"] == [one.value for one in EndKind]
    cells = matrix["properties"]["rows"]["items"]["properties"]["cells"]["items"]
    assert cells["properties"]["mark"]["enum"] == [one.value for one in Mark]
    assert compare["$defs"]["difference"]["properties"]["what"]["enum"] == [one.value for one in What]


def test_the_page_names_every_key() -> None:
    page = (ROOT / "docs" / "results.md").read_text()

    def keys(one: Any) -> Iterator[str]:
        if isinstance(one, dict):
            yield from one.get("properties", {})
        for part in one.values() if isinstance(one, dict) else one if isinstance(one, list) else ():
            yield from keys(part)

    assert {key for one in schemas.SCHEMAS.values() for key in keys(one) if f"`{key}`" not in page} == set()


def test_every_key_has_a_description_or_a_self_explanatory_name() -> None:
    """A key without a description must have one of these few names."""
    plain = {"scenario", "turn", "checkpoint", "process", "mapping", "message", "reason", "title", "line", "why"}
    plain |= {"name", "before", "after", "subject", "level", "schema", "version", "kernel", "guest"}
    plain |= {
        "capabilities",
        "results",
        "kind",
        "claims",
        "observations",
        "waived",
        "mark",
        "what",
        "rows",
        "differences",
    }

    def undescribed(schema: Any) -> set[str]:
        if isinstance(schema, list):
            return set().union(*map(undescribed, schema))
        if not isinstance(schema, dict):
            return set()
        own = {key for key, one in schema.get("properties", {}).items() if "description" not in one}
        return own.union(*map(undescribed, schema.values()))

    assert set().union(*map(undescribed, schemas.SCHEMAS.values())) <= plain


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"version": 1}, "$.version"),
        ({"kernel": {"spec": "x"}}, "$.kernel"),
        ({"results": [{}]}, r"$.results[0]"),
        ({"smp": "4"}, "$.smp"),
        ({"news": 1}, "'news' was unexpected"),
    ],
)
def test_invalid_outputs_are_refused(change: dict[str, Any], words: str) -> None:
    try:
        schemas.check({**RUN, **change})
    except AssertionError as error:
        said = str(error)
    else:
        said = ""
    assert words in said
    assert bool(words) == bool(said)
