"""An event loop in a thread of its own: the console is always read, whatever the test is doing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

_SETTLE_TIMEOUT_S = 15.0


class LoopThread:
    """Runs coroutines for callers that are not async. QEMU is started from here and dies with this thread."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._work: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs ``work`` to its end and returns what it returns.

        Ctrl-C in the caller cancels it, and is raised once ``work`` has cleaned up behind itself.
        """
        future = asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                settling = asyncio.run_coroutine_threadsafe(_cancel(self._work), self._loop)
                settling.result(timeout=_SETTLE_TIMEOUT_S)
            raise

    async def _tracked(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._work.add(task)
        try:
            return await work
        finally:
            self._work.discard(task)

    def close(self) -> None:
        """Cancels what still runs and ends the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(timeout=_SETTLE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_SETTLE_TIMEOUT_S)
        self._loop.close()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def _cancel_all() -> None:
    await _cancel(task for task in asyncio.all_tasks() if task is not asyncio.current_task())
