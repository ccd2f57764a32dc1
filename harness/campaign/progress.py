"""The progress of a campaign on stderr: one live line on a terminal, and one line per kernel elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


class Live:
    """The progress display, as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=self._console, transient=True)
        self._said: set[str] = set()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()

    def now(self, job: str) -> None:
        """Show the current job; does nothing if stderr is not a terminal."""
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._progress.add_task(escape(job), total=None)

    def say(self, line: str) -> None:
        """Print a line that stays, once."""
        if line not in self._said:
            self._said.add(line)
            self._console.print(f"hugepfn: {escape(line)}", soft_wrap=True)
