"""Reads what gcov says about one object: how often each line was executed. Pure."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable

from harness.coverage.report import Counts
from harness.errors import MachineryError


def counts_of(answers: Iterable[bytes], source: str) -> Counts:
    """Read what ``gcov --json-format --stdout`` says about some objects, and add it up.

    Of a header, each object that includes it has its own counts. Files outside of the source (generated ones, the
    compiler's) are left out.

    :param source: the folder in which the kernel's source was when it was built.
    :raises MachineryError: gcov says something else.
    """
    found: dict[str, dict[int, int]] = collections.defaultdict(lambda: collections.defaultdict(int))
    for answer in answers:
        try:
            for file in json.loads(answer)["files"]:
                name = str(file["file"])
                if name.startswith(f"{source}/"):
                    for line in file["lines"]:
                        found[name.removeprefix(f"{source}/")][int(line["line_number"])] += int(line["count"])
        except (ValueError, KeyError, TypeError) as error:
            raise MachineryError(f"gcov's JSON has another form than expected: {error!r}") from error
    return {file: dict(lines) for file, lines in found.items()}
