"""The explorer on a real kernel: what is right passes, a known bug is found, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.kernel import Kernel
from harness.model.operation import Operation, Verb
from harness.verdict.seen import parse_facts
from tests import schemas

from .conftest import ROOT, Command, wait_for

FACTS = parse_facts((ROOT / "guest_tests/known_bugs_seen.toml").read_text())
KERNEL = "debian:6.12"
#: Each operation and each kind of memory, in three processes.
SOUND = (
    "0:map:40000000:40000000:0:bar:rw 0:write:40000000:0:0:bar: 0:map:0:4000:0:anon:rw 0:write:1000:0:0:bar: "
    "0:map:80000000:200000:0:shm:rw 0:write:80000000:0:0:bar: 0:fork:0:0:1:bar: 1:write:1000:0:0:bar: "
    "0:read:1000:0:0:bar: 1:write:80001000:0:0:bar: 0:read:80001000:0:0:bar: 1:read:40000000:0:0:bar: "
    "1:mprotect:0:1000:0:bar:r 1:write:0:0:0:bar: 1:munmap:80000000:1000:0:bar: 1:read:80000000:0:0:bar: "
    "0:mremap:0:4000:100000:bar: 0:read:101000:0:0:bar: 0:read:1000:0:0:bar: 0:shrink:100000:4000:1000:bar: "
    "0:madvise:40000000:200000:0:bar:dontneed 0:clear_refs:0:0:0:bar:1 0:look:0:0:0:bar:pagemap 1:fork:0:0:2:bar: "
    "2:exit:0:0:0:bar: 2:read:0:0:0:bar: 0:dma:40000000:200000:0:bar: 0:memory:0:0:0:bar:off 1:read:40000000:0:0:bar: "
    "0:memory:0:0:0:bar:on 0:read:40000000:0:0:bar: 0:fill:40001000:0:0:bar: 0:send:40001000:0:0:bar: "
    "0:fill:0:0:0:bar: "
    "0:peek:40000000:0:0:bar: 0:peek:101000:0:0:bar: 0:mlock:100000:1000:0:bar:on "
    "0:grow:40000000:40000000:80000000:bar: "
    "0:write:40002000:0:0:bar:other 0:read:40002000:0:0:bar: 0:mprotect:40000000:40000000:0:bar:r "
    "0:write:40002000:0:0:bar:other 0:mprotect:40000000:40000000:0:bar:rw 1:read:40002000:0:0:bar:other "
    "0:race:0:28:0:bar: 0:write:40001000:0:0:bar: 0:look:0:0:0:bar:maps "
    "0:scan:40000000:40000000:0:bar: 0:mincore:40000000:40000000:0:bar: 0:peek:40000000:0:0:bar:vm_readv "
    "0:peek:40000000:0:0:bar:vmsplice 0:read:40001000:0:0:bar:vfork 0:write:40002000:0:0:bar:vfork "
    "0:memory:0:0:0:bar:sleep 0:read:40000000:0:0:bar: 0:memory:0:0:0:bar:wake 0:memory:0:0:0:bar:reset "
    "0:write:40000000:0:0:bar: 0:race:0:28:0:bar: 0:munmap:40000000:40000000:0:bar: 0:write:40000000:0:0:bar: "
    "0:map:80000000:200000:0:anon:rw 0:write:80000000:0:0:bar: 0:peek:80000000:0:0:bar:vm_readv "
    "0:peek:80000000:0:0:bar:vmsplice 0:uffd:80000000:200000:0:anon:wp 0:uffd:80000000:200000:0:anon:async "
    "0:uffd:80000000:1000:0:anon:missing 0:scan:80000000:200000:0:anon:"
)
SMAPS = "0:map:0:40000000:0:bar:rw 0:write:0:0:0:bar: 0:look:0:0:0:bar:smaps"


def test_every_operation_does_what_is_documented(hugepfn: Command) -> None:
    assert {Operation.parse(word).verb for word in SOUND.split()} == set(Verb)
    done = hugepfn("explore", "--kernel", KERNEL, "--sequence", SOUND)
    assert done.stdout.endswith("nothing is wrong\n"), done.stdout + done.stderr
    assert done.returncode == 0


def test_a_reader_that_tears_down_a_leaf_is_found(tmp_path: Path, hugepfn: Command) -> None:
    """HP-005, where the kernel has it, in the second of two sequences, and the C file that shows it without hugepfn."""
    version = FACTS.version_of(Kernel.parse(KERNEL).resolve().release).partition("+")[0]
    if version not in FACTS.bugs["HP-005"].present:
        pytest.skip(f"{version} was not seen to have HP-005")
    program = f"0:map:0:2000:0:anon:rw 0:write:1000:0:0:bar: , {SMAPS}"
    done = hugepfn("explore", "--kernel", KERNEL, "--sequence", program, "--reproducers", str(tmp_path))
    assert "  3  p0: look(smaps)    <-\nuntouched: smaps (pud): expected no change, got gone\n" in done.stdout
    assert done.returncode == 1
    built = str(tmp_path / "finding-1")
    subprocess.run(["gcc", "-static", "-pthread", "-o", built, f"{built}.c"], check=True, timeout=120)
    shown = hugepfn("exec", "--kernel", KERNEL, built, "{bdf}")
    assert "BROKEN: untouched: smaps (pud): expected no change, got gone\n" in shown.stdout
    assert shown.returncode == 1


def test_an_exploration_reports_what_it_ran(tmp_path: Path, hugepfn: Command) -> None:
    found = tmp_path / "found.json"
    options = ("--minutes", "0.1", "--ops", "map,read,write,fork,exit", "--json", str(found))
    done = hugepfn("explore", "--kernel", KERNEL, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads(found.read_text())
    assert schemas.check(data) == "hugepfn-explore"
    assert data["sequences"] >= 20
    assert f"{data['sequences']} sequences, " in done.stdout
    assert f"5 of {len(Verb)} operations" in done.stdout
    assert hugepfn.left_behind() == []


@contextlib.contextmanager
def exploring(hugepfn: Command) -> Iterator[subprocess.Popen[str]]:
    """An exploration that has just found something, and makes it short."""
    command = hugepfn.argv("explore", "--kernel", KERNEL, "--minutes", "10", "--no-known-bugs")
    with subprocess.Popen(
        command, env=hugepfn.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        while "sequence " not in running.stderr.readline():
            pass
        yield running


def test_ctrl_c_ends_an_exploration(hugepfn: Command) -> None:
    with exploring(hugepfn) as running:
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=5)
    assert running.returncode == 130
    assert " times, first sequence " in said, "what was found before is told"
    assert hugepfn.left_behind() == []


def test_an_exploration_that_is_killed_leaves_nothing(hugepfn: Command) -> None:
    with exploring(hugepfn) as running:
        running.kill()
    wait_for(lambda: hugepfn.left_behind() == [], "the end of the machines", 30)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ops", "map,fly"), "no operation is called 'fly'; expected some of: map, read, write"),
        (("--sequence", "0:fly:0:0:0:bar:"), "is not an operation; expected PROCESS:VERB:AT:SIZE:TO:MEMORY:HOW"),
        (("--sequence", ""), "the sequence is empty"),
        (("--sequence", "0:mremap:0:1000:4000:bar:"), "has an operation of which nothing is documented"),
    ],
)
def test_bad_input_is_refused(options: tuple[str, ...], said: str, hugepfn: Command) -> None:
    done = hugepfn("explore", "--kernel", KERNEL, *options)
    assert said in done.stderr
    assert done.returncode == 2
