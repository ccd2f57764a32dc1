"""The golden logs of ``hugepfn dmesg`` (tests/data/dmesg): each carries its expectation in its header.

The header is the lines before the first empty one. ``origin:`` says where the log is from (a real machine and its
kernel, or "hand-written"); each report has a ``report:`` line, in order. ``pytest tests/test_dmesg_logs.py --update``
rewrites the ``report:`` lines. Read the diff before you commit it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.verdict.log.complaints import Complaint

FOLDER = Path(__file__).parent / "data" / "dmesg"


@dataclass(frozen=True)
class GoldenLog:
    """One file."""

    path: Path
    origin: str
    expected: tuple[str, ...]
    """What :func:`summary` says of each report."""
    text: str

    @classmethod
    def read(cls, path: Path) -> GoldenLog:
        """Read a file; its first lines are the header."""
        header, _, text = path.read_bytes().decode().partition("\n\n")
        rows = [line.partition(": ") for line in header.split("\n")]
        (origin,) = (value for name, _, value in rows if name == "origin")
        return cls(path, origin, tuple(value for name, _, value in rows if name == "report"), text)

    def write(self, complaints: tuple[Complaint, ...]) -> None:
        """Rewrite the file with what is found now."""
        header = [f"origin: {self.origin}", *(f"report: {summary(one)}" for one in complaints)]
        self.path.write_bytes(("\n".join(header) + "\n\n" + self.text).encode())


def summary(complaint: Complaint) -> str:
    """Everything that is read from a complaint, except its text."""
    data = complaint.to_json()
    words = {name: data[name] for name in ("kind", "title", "function", "process", "pid", "cpu", "taint")}
    return json.dumps({**words, "lines": [complaint.begin, complaint.number, complaint.end], "damage": data["damage"]})


def logs() -> list[GoldenLog]:
    """All of them, by name."""
    return [GoldenLog.read(path) for path in sorted(FOLDER.glob("*.log"))]
