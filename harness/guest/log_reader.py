"""Reads the kernel log through the agent, up to now."""

from __future__ import annotations

import time

from harness.errors import MachineryError
from harness.guest.agent import Agent
from harness.verdict import parse_log_part

#: More than a kernel keeps of its log. If more arrives, it is logged as fast as we read it.
_READ_MAX_BYTES = 64 << 20


async def read_log(agent: Agent, occasion: str, timeout_s: float) -> None:
    """Add every record that the kernel has logged by now to the machine's log.

    We log a line first, for two reasons: a message without a newline becomes a record only when another follows it
    (kernel/printk/printk_ringbuffer.c, prb_commit()), and our line marks the end of the log.

    :param occasion: the text of that line.
    :param timeout_s: for the whole operation.
    :raises MachineryError: the kernel has no /dev/kmsg, drops what is written to it, or never stops logging.
    :raises DeadlineError: the agent does not answer.
    """
    log = agent.emulator.log
    deadline = time.monotonic() + timeout_s
    async with log.reading:
        mark, line = f"hugepfn: {occasion} ({agent.next_id})", True
        shown, lost, size = log.mark().console, 0, 0
        while True:
            left_s = deadline - time.monotonic()
            if size > _READ_MAX_BYTES or (left_s <= 0 and size):
                raise MachineryError(
                    f"the kernel log does not end: there is more after {size} bytes; stop what writes to it"
                )
            answer = await agent.request("kmsg", mark.encode() if line else b"", max(left_s, 0.1))
            line = False
            part = parse_log_part(answer.payload)
            lost += log.add(part)
            size += len(answer.payload)
            if mark in (record.text for record in part.records):
                break
            if part.ended:
                if lost:
                    break  # includes our line
                raise MachineryError(
                    "the kernel drops what is written to /dev/kmsg, so the end of its log is not known: leave "
                    "/proc/sys/kernel/printk_devkmsg as it is, and boot without printk.devkmsg=ratelimit"
                )
        if not lost:
            log.covered(shown)
