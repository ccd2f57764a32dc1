"""Slow host work in a thread, while a machine's event loop reads the console and handles deadlines and Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_GIVE_UP_S = 1.0


class Abandoned(Exception):
    """The caller no longer waits for this work."""


async def aside(work: Callable[[Callable[[], None]], T]) -> T:
    """Run ``work`` in its own thread and return its result.

    :param work: gets a function that it calls often, and that raises Abandoned after this coroutine is cancelled.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    abandoned = threading.Event()

    def check() -> None:
        if abandoned.is_set():
            raise Abandoned

    def tell(put: Callable[[Any], None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits for the result
            loop.call_soon_threadsafe(lambda: None if done.done() else put(value))

    def run() -> None:
        try:
            result = work(check)
        except BaseException as error:
            tell(done.set_exception, error)
        else:
            tell(done.set_result, result)

    threading.Thread(target=run, name="aside", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        abandoned.set()
        # It may still read memory that its owner is about to free.
        await asyncio.wait({done}, timeout=_GIVE_UP_S)
        if done.done():
            done.exception()
        raise
