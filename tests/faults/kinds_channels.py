"""Lies, floods and garbage on the channels from the guest, by a program that has the agent's own descriptors."""

from __future__ import annotations

from pathlib import Path

from tests.faults.kind import Ending, Kind
from tests.faults.kinds_guest import ARGV, NOTHING, doing
from tests.faults.scene import Scene

_GROUP = "The channels from the guest"
_AGENT, _EVENTS = 1, 2


def _lie(name: str, done: str, port: int, words: str, *endings: Ending, timeout_s: float = 30.0) -> Kind:
    return Kind(name, _GROUP, done, endings, ARGV, doing(f"--do=lie --port={port} {words}", "", timeout_s), logs=False)


def _refused(*words: str) -> Ending:
    return Ending(3, words, "error")


_HANG = Ending(1, (NOTHING,), "failed", "hang")


def _flooding_qemu(scene: Scene) -> None:
    scene.environment["HUGEPFN_QEMU"] = str(Path(__file__).with_name("flooding_qemu.py"))


KINDS = (
    _lie(
        "agent-garbage", "random bytes on the agent's port", _AGENT, "--random=4096 --seed={seed}", _refused("agent: ")
    ),
    _lie(
        "agent-lie-length",
        "a frame on the agent's port announces a terabyte",
        _AGENT,
        "--text='done 7 1099511627776~'",
        _refused("agent: a frame of 1099511627776 bytes"),
    ),
    _lie(
        "agent-lie-header",
        "a header on the agent's port makes no sense",
        _AGENT,
        "--text='out of order, sorry~'",
        _refused("agent: header .*expected 'VERB ID LENGTH'"),
    ),
    _lie(
        "agent-lie-endless-header",
        "a header on the agent's port does not end",
        _AGENT,
        "--text=xxxxxxxx --times=100000",
        _refused("agent: .*expected a header"),
    ),
    _lie(
        "agent-lie-failed",
        "the agent is made to say that it cannot go on",
        _AGENT,
        "--text='failed 0 9~5 it lied'",
        _refused("the guest's agent cannot go on: it lied"),
    ),
    _lie(
        "agent-lie-exit",
        "the agent is made to report ends of jobs in a wrong form",
        _AGENT,
        "--text='exit 1 3~abcexit 2 3~abcexit 3 3~abcexit 4 3~abcexit 5 3~abcexit 6 3~abc'",
        _refused("agent: exit 'abc'"),
    ),
    _lie(
        "agent-flood",
        "200,000 frames of jobs that do not exist, on the agent's port",
        _AGENT,
        "--text='out 999 10~0123456789' --times=200000",
        Ending(0, ("1 passed",), "passed"),
        timeout_s=120,
    ),
    _lie(
        "agent-flood-started",
        "jobs are reported without end that nobody has started, on the agent's port",
        _AGENT,
        "--text='started 999 2~77' --times=100000",
        _refused("jobs have started without a request"),
    ),
    _lie(
        "events-garbage",
        "random bytes on the port of the events",
        _EVENTS,
        "--random=65536 --seed={seed}",
        _refused("events: "),
    ),
    _lie(
        "events-lie-name",
        "an event has a name with control characters",
        _EVENTS,
        "--text='checkpoint a\x1b[2J @ 1 7000 1~'",
        _refused(r"waits at 'a\\+x1b\[2J'"),
    ),
    _lie(
        "events-lie-process",
        "a checkpoint of a process that does not exist",
        _EVENTS,
        "--text='checkpoint c9 4000000 1 7000 1~'",
        _refused("4000000|c9"),
    ),
    _lie(
        "events-lie-mapping",
        "a mapping beyond the end of the BAR",
        _EVENTS,
        "--text='mapping evil @ 7f0000000000 40000000 3 bar ffffffffff000~'",
        _refused("mapping|evil|process 1"),
    ),
    _lie(
        "events-long-line",
        "an event without an end",
        _EVENTS,
        "--text=xxxxxxxx --times=100000",
        _refused("events: a line begins with .*expected at most"),
    ),
    _lie(
        "events-flood",
        "100,000 events that say nothing",
        _EVENTS,
        "--text='gone 4000000~' --times=100000",
        _refused("events: "),
        Ending(0, ("1 passed",), "passed"),
        timeout_s=120,
    ),
    Kind(
        "agent-killed",
        _GROUP,
        "the agent's code is overwritten, and it dies",
        (Ending(1, ("Attempted to kill init",), "failed", "died"),),
        ARGV,
        doing("--do=kill-agent"),
        logs=False,
    ),
    Kind(
        "console-flood",
        _GROUP,
        "100 MB arrive on the console",
        (Ending(0, ("1 passed",), "passed"),),
        prepare=_flooding_qemu,
        patience_s=120,
        logs=False,
    ),
    Kind(
        "log-flood",
        _GROUP,
        "a program writes 100 MB into the kernel log",
        (Ending(3, (r"the kernel log has a gap of \d+ records",), "error"),),
        ARGV,
        doing("--do=flood --path=/dev/kmsg --bytes=104857600 --line=900", "", 300),
        patience_s=300,
        logs=False,
    ),
)
