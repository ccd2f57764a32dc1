"""The JSON Schemas of docs/schemas/, and a function that checks an output of hugepfn against its schema."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "schemas"
SCHEMAS: dict[str, dict[str, Any]] = {
    path.name.removesuffix(".schema.json"): json.loads(path.read_text()) for path in FOLDER.glob("*.schema.json")
}


def closed(schema: Any) -> Any:
    """The schema without additional keys: readers ignore unknown keys, but we document every one."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict):
        found.setdefault("additionalProperties", False)
    return found


@functools.cache
def _validator(name: str) -> Draft202012Validator:
    all_closed = {one["$id"]: Resource.from_contents(closed(one)) for one in SCHEMAS.values()}
    registry: Registry[Any] = Registry().with_resources(all_closed.items())
    return Draft202012Validator(closed(SCHEMAS[name]), registry=registry)


def check(data: Any) -> str:
    """Check an output against the schema that it names, and return that name.

    :raises AssertionError: it does not fit, or has a key that the schema does not name.
    """
    name = str(data["schema"])
    wrong = [f"{error.json_path}: {error.message:.200}" for error in _validator(name).iter_errors(data)]
    assert not wrong, f"docs/schemas/{name}.schema.json: {wrong[:5]}"
    return name
