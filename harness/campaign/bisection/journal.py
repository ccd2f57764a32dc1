"""What the journal of a bisection notes of each unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from harness.bisection.symptom import Sighting
from harness.verdict.claims import ScenarioResult
from harness.verdict.json_fields import as_object, member, strings


@dataclass(frozen=True)
class Noted:
    """One run, or why there is none."""

    step: str
    """The name of the commit or of the end."""
    seen: Sighting
    reason: str = ""
    key: str = ""
    """Of the kernel, by its content."""
    same_as: str = ""
    """The step that made the same kernel, which was not run again."""
    result: ScenarioResult | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as a line of the journal."""
        result = self.result.to_json() if self.result is not None else None
        told = {"step": self.step, "seen": self.seen.value, "reason": self.reason, "key": self.key}
        return {**told, "same_as": self.same_as, "result": result}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a line of a journal")
        step, reason, key, same_as = strings(data, "step", "reason", "key", "same_as")
        result = ScenarioResult.from_json(data["result"]) if data.get("result") is not None else None
        return cls(step, member(data, "seen", Sighting), reason, key, same_as, result)
