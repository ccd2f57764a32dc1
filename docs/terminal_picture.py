"""Draws docs/pictures/run.svg: what `hugepfn run fork --level pud` prints, in colour. `make pictures` runs it."""

from __future__ import annotations

import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

PICTURE = Path(__file__).resolve().parent / "pictures" / "run.svg"
COMMAND = ("run", "fork", "--level", "pud", "--kernel", "debian:6.12")
STOPS = ("written", "forked")
_WIDTH = 116
_CURSOR = re.compile(r"\x1b\[(?:\?25[lh]|\d*[AK])")  # moves that a still picture has not got
_SPINNER = re.compile(r"[\u2800-\u28ff]")


def shown(lines: list[str]) -> list[str]:
    """The lines of the picture: the head, two stops, the first claims and the verdict."""
    plain = [Text.from_ansi(line).plain for line in lines]
    stops = [number for number, line in enumerate(plain) if re.match(r"[a-z]\S*$", line)] + [len(plain)]
    wanted = set(range(stops[0]))
    for start, end in itertools.pairwise(stops):
        if plain[start].strip() in STOPS:
            wanted |= {one for one in range(start, end) if not plain[one].startswith("  ok")}
    claims = [number for number, line in enumerate(plain) if line.startswith("  ok")]
    wanted |= {*claims[2:8], claims[-1], *range(claims[-1] + 1, len(plain))}
    return [line for number, line in enumerate(lines) if number in wanted]


def main() -> None:
    """Run the command and draw the picture."""
    argv = [sys.executable, "-m", "harness.entry", *COMMAND]
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "300", "TERM": "xterm-256color"}
    done = subprocess.run(argv, check=True, text=True, stdout=subprocess.PIPE, env=environment, timeout=600)
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), highlight=False)
    console.print(Text.from_ansi(f"\x1b[1m$ hugepfn {' '.join(COMMAND)}\x1b[0m"))
    lines = [_CURSOR.sub("", line) for line in done.stdout.splitlines() if not _SPINNER.search(line)]
    for line in shown([line for line in lines if line.strip()]):
        console.print(Text.from_ansi(line), no_wrap=True, crop=True)
    picture = console.export_svg(title="hugepfn", theme=MONOKAI, unique_id="hugepfn")
    # The font comes with whoever shows it: a picture in a README loads nothing from elsewhere.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    PICTURE.write_text(re.sub(r"[ \t]+$", "", picture, flags=re.MULTILINE))


if __name__ == "__main__":
    main()
