"""Read the fields of JSON objects, each with its type. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import date
from typing import Any, TypeVar

from harness.errors import UsageError

JsonObject = Mapping[str, Any]

_T = TypeVar("_T")
_E = TypeVar("_E", bound=enum.Enum)


def as_object(value: object, what: str) -> dict[str, Any]:
    """Return a JSON object. Like the other functions here, it raises UsageError if the value is something else.

    :param what: its name in the message.
    """
    if not isinstance(value, Mapping):
        raise UsageError(f"{what} is {type(value).__name__}; expected a JSON object, as --json writes it")
    return dict(value)


def value_of(data: JsonObject, key: str, kind: type[_T]) -> _T:
    """Return the value of a key, which must have this type."""
    if key not in data:
        raise UsageError(f"{key!r} is missing; the object has: {', '.join(sorted(data)) or 'nothing'}")
    value = data[key]
    if not isinstance(value, kind):
        raise UsageError(f"{key!r} is {value!r:.80}; expected {kind.__name__}")
    return value


def member(data: JsonObject, key: str, kind: type[_E]) -> _E:
    """Return the member of an enumeration whose value is under a key."""
    word = value_of(data, key, str)
    try:
        return kind(word)
    except ValueError:
        known = ", ".join(str(one.value) for one in kind)
        raise UsageError(f"{key!r} is {word!r}; expected one of: {known}") from None


def objects(data: JsonObject, key: str) -> list[dict[str, Any]]:
    """Return the list of objects under a key."""
    return [as_object(one, f"an entry of {key!r}") for one in value_of(data, key, list)]


def strings(data: JsonObject, *keys: str) -> tuple[str, ...]:
    """Return the strings under several keys."""
    return tuple(value_of(data, key, str) for key in keys)


def day(data: JsonObject) -> date:
    """Return the day under "date"."""
    text = value_of(data, "date", str)
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"'date' is {text!r}; expected a day such as 2026-11-26") from None
