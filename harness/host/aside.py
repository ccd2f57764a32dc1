"""Host work aside of a machine's event loop: the console is read meanwhile, and a deadline or Ctrl-C ends it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

_GIVE_UP_S = 1.0


class Abandoned(Exception):
    """Nobody waits for this work any more."""


async def aside(work: Callable[[Callable[[], None]], T]) -> T:
    """Runs ``work`` in a thread of its own and returns what it returns.

    :param work: gets a function to call often, which raises Abandoned once this coroutine was cancelled.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    abandoned = threading.Event()

    def check() -> None:
        if abandoned.is_set():
            raise Abandoned

    def tell(put: Callable[[Any], None], value: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to hear it
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
        # It may look at memory that its owner is about to give back.
        await asyncio.wait({done}, timeout=_GIVE_UP_S)
        if done.done():
            done.exception()
        raise
