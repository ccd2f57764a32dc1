"""The progress of a session or a campaign: one live line on a terminal, and plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.markup import escape

from harness.events import Compiled, Event, Sparing

if TYPE_CHECKING:
    from rich.progress import Progress


class Live:
    """The progress display, as a context manager.

    :param console: where to show it; None for standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._progress: Progress | None = None
        self._sparing = Sparing(self.line)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the live line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def now(self, job: str) -> None:
        """Show the current job and its elapsed time; does nothing if this is not a terminal."""
        if not self._console.is_terminal:
            return
        if self._progress is None:
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.start()
        for task in self._progress.task_ids:
            self._progress.remove_task(task)
        self._progress.add_task(escape(job), total=None)

    def say(self, event: Event) -> None:
        """Show an event as a line that stays, once; on a terminal, a compiled file changes the live line instead."""
        if isinstance(event, Compiled) and self._console.is_terminal:
            self._detail(str(event))
            return
        self._sparing(event)

    def _detail(self, text: str) -> None:
        if self._progress is None:
            self.now(text)
            return
        for task in self._progress.task_ids:  # change the same task, so that its clock goes on
            self._progress.update(task, description=escape(text))

    def line(self, line: str) -> None:
        """Print a line that stays."""
        self._console.print(f"[dim]hugepfn: {escape(line)}[/dim]", highlight=False, soft_wrap=True)
