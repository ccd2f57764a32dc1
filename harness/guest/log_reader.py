"""Reading the kernel's log through the agent, up to now."""

from __future__ import annotations

import time

from harness.errors import MachineryError
from harness.guest.agent import Agent
from harness.verdict import parse_log_part

#: More than a kernel keeps of its log: what goes on for longer is written as fast as it is read.
_READ_MAX_BYTES = 64 << 20


async def read_log(agent: Agent, occasion: str, timeout_s: float) -> None:
    """Adds to the machine's log every record that the kernel has logged by now.

    A line is logged first: a message without a newline is a record only once another follows it
    (kernel/printk/printk_ringbuffer.c, prb_commit()), and where our line is, the log ends.

    :param occasion: what that line says.
    :param timeout_s: for all of it.
    :raises MachineryError: the kernel has no /dev/kmsg, drops what is written to it, or logs without an end.
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
                    f"the kernel's log has no end: {size} bytes were read, and more came meanwhile; end what writes it"
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
                    break  # our line with them
                raise MachineryError(
                    "the kernel drops what is written to /dev/kmsg, so where its log ends is not known: leave "
                    "/proc/sys/kernel/printk_devkmsg as it is, and boot without printk.devkmsg=ratelimit"
                )
        if not lost:
            log.covered(shown)
