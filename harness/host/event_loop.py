"""An event loop in its own thread, so that the console is always read, whatever the test is doing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_SETTLE_TIMEOUT_S = 15.0
_CANCEL_TIMEOUT_S = 1.0


class LoopThread:
    """Runs coroutines for synchronous callers. QEMU is started from this thread and dies with it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._work: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` to its end and return its result.

        Ctrl-C in the caller cancels it. KeyboardInterrupt is raised after ``work`` has cleaned up, or a second later.
        """
        future = asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)
        try:
            _until_done(future)
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                settling = asyncio.run_coroutine_threadsafe(_cancel(self._work), self._loop)
                with contextlib.suppress(TimeoutError):  # it continues in the background until close()
                    settling.result(timeout=_CANCEL_TIMEOUT_S)
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
        """Cancel what still runs and end the thread. If the thread hangs, it is left to end with this process."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(_cancel_all(), self._loop).result(timeout=_SETTLE_TIMEOUT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_SETTLE_TIMEOUT_S)
        if not self._thread.is_alive():
            self._loop.close()


def _until_done(future: Future[Any]) -> None:
    """Wait until it is done, and handle signals at once, whenever they arrive.

    Without the wakeup descriptor (Python's signal.set_wakeup_fd()), a signal that arrives while the main thread waits
    for the interpreter's lock, just before it sleeps, would be handled only after the sleep.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # Python handles signals in the main thread only
    woken, wake = socket.socketpair()

    def tell(_done: object) -> None:
        with contextlib.suppress(OSError):  # the wait is over
            wake.send(b"!")

    with woken, wake:
        wake.setblocking(False)
        before = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        try:
            future.add_done_callback(tell)
            while not future.done():
                woken.recv(4096)
        finally:
            signal.set_wakeup_fd(before)


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def _cancel_all() -> None:
    await _cancel(task for task in asyncio.all_tasks() if task is not asyncio.current_task())
