"""The result of a test on its way to the plugins that show or write it: one value per report of pytest.

A report carries it as an attribute. Only between xdist's processes is it JSON.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import pytest

from harness.verdict import ScenarioResult
from harness.verdict.json_fields import JsonObject, as_object, value_of

_ATTRIBUTE = "hugepfn"


@dataclass(frozen=True)
class Carried:
    """What a report says about a test."""

    result: ScenarioResult
    context: JsonObject | None = None
    """What the test ran on, as far as it got; None for a test without a machine, which has only an outcome."""
    misused: bool = False
    """The user's request is the error."""
    wished: bool = False
    """The test had another machine than the requested one."""
    no_kernel: bool = False
    """There is no kernel to test: it does not build, or it does not boot."""

    def to_json(self) -> dict[str, Any]:
        """Return this value as a JSON object."""
        rest: dict[str, Any] = {"context": self.context, "misused": self.misused, "wished": self.wished}
        rest["no_kernel"] = self.no_kernel
        return {"result": self.result.to_json(), **rest}

    @classmethod
    def from_json(cls, value: object) -> Carried:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value is something else.
        """
        data = as_object(value, "what a report carries")
        return cls(
            result=ScenarioResult.from_json(data["result"]),
            context=None if data["context"] is None else as_object(data["context"], "the context"),
            misused=value_of(data, "misused", bool),
            wished=value_of(data, "wished", bool),
            no_kernel=value_of(data, "no_kernel", bool),
        )


def carry(report: pytest.TestReport, carried: Carried) -> None:
    """Attach a value to a report."""
    setattr(report, _ATTRIBUTE, carried)


def carried_by(report: pytest.TestReport) -> Carried | None:
    """Return what a report carries; None if it carries nothing."""
    found = getattr(report, _ATTRIBUTE, None)
    return found if isinstance(found, Carried) else None


class Crossing:
    """A pytest plugin, in xdist's workers and in their controller."""

    @pytest.hookimpl(wrapper=True)
    def pytest_report_to_serializable(self, report: pytest.TestReport) -> Generator[None, Any, Any]:
        """Encode the value, in a worker."""
        data = yield
        if data is not None and (carried := carried_by(report)) is not None:
            data[_ATTRIBUTE] = json.dumps(carried.to_json())
        return data

    @pytest.hookimpl(wrapper=True)
    def pytest_report_from_serializable(self) -> Generator[None, Any, Any]:
        """Decode the value, in the controller."""
        report = yield
        if isinstance(text := getattr(report, _ATTRIBUTE, None), str):
            carry(report, Carried.from_json(json.loads(text)))
        return report
