"""Tests for the guest's agent, compiled for this host with sanitizers: requests over a socket pair, without QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pty
import resource
import shutil
import socket
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.guest.compiler import OUR_CFLAGS, guest_tests_dir
from harness.guest.protocol import Frame, FrameDecoder, parse_refusal, put_payload, run_payload

PAYLOAD_MAX, KMSG_ANSWER = 4 << 20, 40 << 10  # smaller than in the guest
READY = Frame("ready", 0, b"channel=virtio\n")
_TIMEOUT_S = 60.0  # for one wait, on a busy host
_FAILED = 3
_SANITIZERS = {
    "ASAN_OPTIONS": "allocator_may_return_null=1:max_allocation_size_mb=16",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the agent and agent_main.c with AddressSanitizer and UndefinedBehaviorSanitizer."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc")
    target = tmp_path_factory.mktemp("agent") / "agent"
    flags = [flag for flag in OUR_CFLAGS if flag != "-static"]
    flags += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    flags += [f"-DPAYLOAD_MAX=((size_t){PAYLOAD_MAX})", f"-DKMSG_ANSWER={KMSG_ANSWER}"]
    sources = [Path(__file__).parent / "agent_main.c", *sorted((guest_tests_dir() / "lib/agent").glob("*.c"))]
    argv = [compiler, *flags, f"-I{guest_tests_dir()}", *map(str, sources), "-o", str(target)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if "cannot find" in done.stderr and "san" in done.stderr:
        pytest.skip("no libasan or libubsan; they come with gcc or as packages of these names")
    assert done.returncode == 0, done.stderr
    return target


class Running:
    """A running agent, as the host sees it."""

    def __init__(
        self,
        program: Path,
        folder: Path,
        *,
        kmsg: socket.socket | int = -errno.ENOENT,
        lossy: bool = False,
        terminal: str = "/nowhere/tty",
        shell: str = "/bin/sh",
        options: str = "",
    ) -> None:
        self.end, theirs = socket.socketpair()
        self.events, their_events = socket.socketpair()
        for one in (self.end, self.events):
            one.settimeout(_TIMEOUT_S)
        number = kmsg if isinstance(kmsg, int) else kmsg.fileno()
        fds = [theirs.fileno(), their_events.fileno(), *([number] if number >= 0 else [])]
        sanitizers = {**_SANITIZERS, "ASAN_OPTIONS": _SANITIZERS["ASAN_OPTIONS"] + options}
        self.process = subprocess.Popen(
            [program, *map(str, (*fds[:2], number, int(lossy), folder, terminal, shell))],
            env={"PATH": os.environ["PATH"], **sanitizers},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=fds,
            text=True,
        )
        theirs.close()
        their_events.close()
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []

    def send(self, *frames: Frame | bytes) -> None:
        self.end.sendall(b"".join(frame if isinstance(frame, bytes) else frame.encode() for frame in frames))

    def next(self) -> Frame:
        while not self._frames:
            data = self.end.recv(1 << 20)
            assert data, f"the agent has ended: {self.process.communicate(timeout=_TIMEOUT_S)[1]}"
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    def ask(self, verb: str, payload: bytes = b"", number: int = 1) -> Frame:
        """Send a request and return its answer. No job may print anything meanwhile."""
        self.send(Frame(verb, number, payload))
        answer = self.next()
        assert answer.id == number
        return answer

    def refusal(self, verb: str, payload: bytes = b"", number: int = 1) -> tuple[int, str]:
        """Send a request that must fail, and return its errno and reason."""
        answer = self.ask(verb, payload, number)
        assert answer.verb == "error", answer
        return parse_refusal(answer.text)

    def until(self, verb: str, number: int) -> tuple[list[Frame], Frame]:
        """Return the frames up to and including the expected one."""
        seen: list[Frame] = []
        end = time.monotonic() + _TIMEOUT_S
        while (frame := self.next()).verb != verb or frame.id != number:
            assert time.monotonic() < end, f"no {verb} {number}"
            seen.append(frame)
        return seen, frame

    def start(self, *argv: str, verb: str = "run", number: int = 1, **environment: str) -> int:
        """Start a job and return its pid."""
        answer = self.ask(verb, run_payload(argv, environment), number)
        assert answer.verb == "started", answer
        return int(answer.text)

    def run(self, *argv: str, number: int = 1, **environment: str) -> tuple[bytes, bytes, str]:
        """Run a program, and return what it printed and how it ended."""
        self.start(*argv, number=number, **environment)
        seen, end = self.until("exit", number)
        assert {frame.verb for frame in seen} <= {"out", "err"}
        out, err = (b"".join(frame.payload for frame in seen if frame.verb == verb) for verb in ("out", "err"))
        return out, err, end.text

    def finish(self, status: int = 0) -> None:
        """Close the host's end. The agent must end with this status and without a message of a sanitizer."""
        self.end.close()
        self.events.close()
        assert (self.process.wait(_TIMEOUT_S), self.complaints()) == (status, "")

    def complaints(self) -> str:
        """End the agent, and return what the sanitizers print about it."""
        _, words = self.process.communicate(timeout=_TIMEOUT_S)
        return "".join(line for line in words.splitlines(True) if "AddressSanitizer failed to allocate" not in line)

    def failure(self) -> tuple[int, str]:
        """Return the errno and the reason of an agent that cannot continue and has ended."""
        frame = self.next()
        assert (frame.verb, frame.id) == ("failed", 0)
        self.finish(_FAILED)
        return parse_refusal(frame.text)


Start = Callable[..., Running]


@pytest.fixture
def start(program: Path, tmp_path: Path) -> Iterator[Start]:
    """Start agents that are ready. At the end, those still running are ended, and their sanitizers must be silent."""
    started: list[Running] = []

    def start(**how: Any) -> Running:
        agent = Running(program, tmp_path, **how)
        started.append(agent)
        assert agent.next() == READY
        return agent

    yield start
    for agent in started:
        try:
            if agent.process.returncode is None:
                agent.finish()
        finally:
            agent.process.kill()


@pytest.fixture
def agent(start: Start) -> Running:
    return start()


def test_a_request_is_answered(agent: Running) -> None:
    assert agent.ask("ping", number=7) == Frame("done", 7, b"pong")
    assert agent.ask("ping", b"x" * 100_000, number=4294967295) == Frame("done", 4294967295, b"pong")


def test_unknown_request(agent: Running) -> None:
    assert agent.refusal("dance") == (errno.ENOSYS, f"request 'dance': {os.strerror(errno.ENOSYS)}")
    assert agent.ask("ping").verb == "done"


# --- programs --------------------------------------------------------------------------------------


def test_a_program_prints_and_ends(agent: Running, tmp_path: Path) -> None:
    script = 'echo "$GREETING $HUGEPFN_EVENTS_FD $PWD"; echo failed >&2; echo an event >&3; exit 7'
    out, err, end = agent.run("sh", "-c", script, GREETING="hello")
    assert (out.decode(), err, end) == (f"hello 3 {tmp_path}\n", b"failed\n", "status 7")
    assert agent.events.recv(100) == b"an event\n"


def test_a_program_has_only_its_own_descriptors_and_no_input(agent: Running) -> None:
    out, err, end = agent.run("sh", "-c", "cat; ls /proc/$$/fd; true")
    assert (out, err, end) == (b"0\n1\n2\n3\n", b"", "status 0")


def test_a_program_leads_a_session_once_it_has_started(agent: Running) -> None:
    pid = agent.start("cat", verb="pipe")
    assert os.getsid(pid) == pid
    assert os.getpgid(pid) == pid


def test_merged_output_streams_stay_in_order(agent: Running) -> None:
    script = "for i in 1 2 3; do echo o$i; echo e$i >&2; done"
    out, err, _ = agent.run("sh", "-c", script, HUGEPFN_ONE_STREAM="1")
    assert (out, err) == (b"o1\ne1\no2\ne2\no3\ne3\n", b"")


def test_all_output_comes_before_the_end(agent: Running) -> None:
    out, _, end = agent.run("sh", "-c", "head -c 300000 /dev/zero")
    assert (len(out), end) == (300_000, "status 0")


@pytest.mark.parametrize(
    ("program_name", "status", "why"),
    [("no-such-program", 127, errno.ENOENT), ("/", 126, errno.EACCES)],
)
def test_a_program_that_cannot_be_run(agent: Running, program_name: str, status: int, why: int) -> None:
    expected = f"exec {program_name}: {os.strerror(why)}\n".encode()
    assert agent.run(program_name) == (b"", expected, f"status {status}")


@pytest.mark.parametrize("payload", [b"", b"\0", b"A=1\0", b"A=1\0\0", b"A=1"])
def test_a_run_without_a_program_is_refused(agent: Running, payload: bytes) -> None:
    assert agent.refusal("run", payload)[0] == errno.EINVAL


def test_the_number_of_arguments_is_limited(agent: Running) -> None:
    out, _, end = agent.run("printf", *["."] * 254)
    assert (out, end) == (b".", "status 0")
    assert agent.refusal("run", run_payload(["printf", *["."] * 255]))[0] == errno.E2BIG
    assert agent.refusal("run", run_payload(["true"] * 10_000))[0] == errno.E2BIG


def test_the_last_argument_may_lack_its_nul(agent: Running) -> None:
    assert agent.ask("run", b"\0echo\0word").verb == "started"
    seen, end = agent.until("exit", 1)
    assert (seen[0].payload, end.text) == (b"word\n", "status 0")


def test_the_number_of_jobs_is_limited(agent: Running) -> None:
    for number in range(1, 17):
        agent.start("cat", verb="pipe", number=number)
    assert agent.refusal("run", run_payload(["true"]), 17)[0] == errno.EAGAIN
    agent.send(Frame("kill", 5, b"9"))
    assert agent.next() == Frame("exit", 5, b"signal 9")
    agent.start("cat", verb="pipe", number=18)


@pytest.mark.parametrize("verb", ["pipe", "socket"])
def test_a_job_without_enough_descriptors_is_refused(agent: Running, verb: str) -> None:
    """Nothing is left behind, whichever of the job's channels is the one for which there is no descriptor."""
    for number in range(1, 16):  # poll(2) takes no more descriptors than RLIMIT_NOFILE, so the limit has to be large
        agent.start("cat", verb="pipe", number=number)
    open_files = Path(f"/proc/{agent.process.pid}/fd")
    before = sorted(file.name for file in open_files.iterdir())
    refused = []
    for more in range(9):
        resource.prlimit(agent.process.pid, resource.RLIMIT_NOFILE, (len(before) + more, 1024))
        answer = agent.ask(verb, run_payload(["cat"]), 100)
        if answer.verb == "started":
            break
        refused.append(parse_refusal(answer.text)[0])
        assert sorted(file.name for file in open_files.iterdir()) == before
    assert refused == [errno.EMFILE] * 8


# --- signals ---------------------------------------------------------------------------------------


def test_a_signal_right_after_the_start_arrives(agent: Running) -> None:
    """A child without a process group of its own would not get the signal."""
    for number in range(1, 51):
        agent.send(Frame("pipe", number, run_payload(["cat"])), Frame("kill", number, b"15"))
        _, end = agent.until("exit", number)
        assert end.text == "signal 15"


def test_a_signal_reaches_all_processes_of_a_job(agent: Running) -> None:
    agent.start("sh", "-c", "sleep 1000 & echo $!; cat; echo not reached", verb="pipe")
    with os.fdopen(os.pidfd_open(int(agent.next().payload))) as orphan:
        agent.send(Frame("kill", 1, b"9"))
        assert agent.next() == Frame("exit", 1, b"signal 9")
        asyncio.run(_readable(orphan.fileno()))
    agent.run("true", number=3)  # when it ends, the agent reaps every child that has ended
    assert agent.ask("ping", number=4).text == "pong"
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
    assert children.read_text() == ""


def test_processes_left_in_a_jobs_group_end_with_it(agent: Running) -> None:
    agent.start("sh", "-c", "sleep 1000 & echo $!")
    seen, end = agent.until("exit", 1)
    assert end.text == "status 0"
    with contextlib.suppress(ProcessLookupError):
        watched = os.pidfd_open(int(seen[0].payload))
        with os.fdopen(watched):
            asyncio.run(_readable(watched))


async def _readable(descriptor: int) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ended.set)
    await asyncio.wait_for(ended.wait(), _TIMEOUT_S)
    asyncio.get_running_loop().remove_reader(descriptor)


@pytest.mark.parametrize("payload", [b"", b"lots", b"0", b"-9", b"65", b"99999999999999999999"])
def test_an_invalid_signal_is_refused(agent: Running, payload: bytes) -> None:
    agent.start("cat", verb="pipe")
    assert agent.refusal("kill", payload)[0] == errno.EINVAL


def test_a_signal_for_an_unknown_job(agent: Running) -> None:
    agent.send(Frame("kill", 9, b"15"))
    assert agent.ask("ping").verb == "done"


# --- input -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["pipe", "socket"])
def test_input_of_any_size_is_echoed(agent: Running, verb: str) -> None:
    agent.start("cat", verb=verb)
    data = bytes(range(256)) * 4096
    agent.send(Frame("in", 1, data[:300_000]), Frame("in", 1, data[300_000:]), Frame("in", 1))
    seen, end = agent.until("exit", 1)
    assert end.text == "status 0"
    assert b"".join(frame.payload for frame in seen if frame.verb == "out") == data
    assert sum(int(frame.text) for frame in seen if frame.verb == "took") == len(data)


def test_input_for_a_job_that_does_not_read(agent: Running) -> None:
    agent.start("sh", "-c", "exec <&-; echo closed; exec sleep 1000", verb="pipe")
    assert agent.next() == Frame("out", 1, b"closed\n")
    agent.send(Frame("in", 1, b"x" * 100_000))
    assert agent.next() == Frame("took", 1, b"100000")
    assert agent.ask("in", b"more") == Frame("took", 1, b"4")
    agent.send(Frame("kill", 1, b"9"))
    assert agent.next().verb == "exit"


def test_unread_input_at_the_end_of_a_job(agent: Running) -> None:
    agent.start("sleep", "1000", verb="pipe")
    agent.send(Frame("in", 1, b"x" * 1_000_000), Frame("kill", 1, b"9"))
    seen, _ = agent.until("exit", 1)
    assert 0 < sum(int(frame.text) for frame in seen) <= 1_000_000


def test_input_for_an_unknown_job(agent: Running) -> None:
    assert agent.ask("in", b"abc", 5) == Frame("took", 5, b"3")
    agent.start("true", verb="run")
    agent.until("exit", 1)
    assert agent.ask("in", b"abc") == Frame("took", 1, b"3")


def test_the_end_of_a_job_is_reported_although_another_process_has_its_output(agent: Running) -> None:
    agent.start("sh", "-c", "setsid yes & cat", verb="pipe")
    assert agent.next().verb == "out"
    agent.send(Frame("in", 1))
    _, end = agent.until("exit", 1)
    assert end.text == "status 0"
    assert agent.ask("ping").verb == "done"


def test_held_output_is_not_sent(agent: Running) -> None:
    agent.start("yes")
    agent.send(Frame("hold", 1), Frame("hold", 99), Frame("ping", 2))
    agent.until("done", 2)
    assert agent.ask("ping", number=3).verb == "done", "no output comes before the answer"
    agent.send(Frame("resume", 1))
    assert agent.next().verb == "out"
    agent.send(Frame("kill", 1, b"9"))
    assert agent.until("exit", 1)[1].text == "signal 9"


def test_held_output_comes_before_the_end(agent: Running) -> None:
    agent.start("sh", "-c", "read line; echo said; exit 3", verb="pipe")
    agent.send(Frame("hold", 1), Frame("in", 1, b"go\n"))
    seen, end = agent.until("exit", 1)
    assert [frame.payload for frame in seen if frame.verb == "out"] == [b"said\n"]
    assert end.text == "status 3"


# --- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 200_000, PAYLOAD_MAX])
def test_a_file_of_any_allowed_size_is_read(agent: Running, tmp_path: Path, size: int) -> None:
    data = os.urandom(1 << 16) * (size // 65536 + 1)
    (tmp_path / "there").write_bytes(data[:size])
    assert agent.ask("get", str(tmp_path / "there").encode()) == Frame("done", 1, data[:size])


@pytest.mark.parametrize("path", ["too large", "/dev/zero"])
def test_a_too_large_file_is_refused(agent: Running, tmp_path: Path, path: str) -> None:
    with (tmp_path / "too large").open("wb") as file:
        file.truncate(PAYLOAD_MAX + 1)
    assert agent.refusal("get", str(tmp_path / path).encode())[0] == errno.EFBIG


def test_files_that_cannot_be_read(agent: Running, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    number, reason = agent.refusal("get", str(missing).encode())
    assert (number, reason) == (errno.ENOENT, f"get {missing}: {os.strerror(errno.ENOENT)}")
    assert agent.refusal("get", b"")[0] == errno.ENOENT
    assert agent.refusal("get", str(tmp_path).encode())[0] == errno.EISDIR
    assert agent.refusal("get", b"/" + b"x" * 300)[0] == errno.ENAMETOOLONG
    assert agent.refusal("get", b"/" * 5000)[0] == errno.ENAMETOOLONG
    assert agent.refusal("get", b"/proc/version\0")[0] == errno.EINVAL
    assert agent.refusal("get", b"/proc/self/mem")[0] == errno.EIO


def test_a_fifo_without_a_writer_does_not_block_the_agent(agent: Running, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert agent.ask("get", str(tmp_path / "fifo").encode()) == Frame("done", 1, b"")


def test_put_creates_directories_and_sets_the_mode(agent: Running, tmp_path: Path) -> None:
    path = tmp_path / "a/b c/file"
    assert agent.ask("put", put_payload(str(path), b"one\ntwo\n\0", 0o640)) == Frame("done", 1, str(path).encode())
    assert path.read_bytes() == b"one\ntwo\n\0"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert agent.ask("put", put_payload(str(path), b"")).verb == "done"
    assert path.read_bytes() == b""


def test_an_open_file_is_replaced(agent: Running, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with path.open("rb") as old:
        assert agent.ask("put", put_payload(str(path), b"new")).verb == "done"
        assert old.read() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize(
    "payload",
    [
        *(
            b"",
            b"755 /nowhere/x",
            b"\n",
            b"755\n",
            b"755 \n",
            b"x /nowhere/x\n",
            b"-1 /nowhere/x\n",
            b" 755 /nowhere/x\n",
        ),
        *(
            b"10000 /nowhere/x\n",
            b"758 /nowhere/x\n",
            b"755\n/nowhere/x\n",
            b"\n755 /nowhere/x\n",
            b"755 /nowhere\0x\n",
        ),
    ],
)
def test_a_malformed_put_is_refused(agent: Running, payload: bytes) -> None:
    assert agent.refusal("put", payload)[0] == errno.EINVAL
    assert not Path("/nowhere").exists()


def test_files_that_cannot_be_put(agent: Running, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert agent.refusal("put", put_payload(str(tmp_path), b""))[0] == errno.EISDIR
    assert agent.refusal("put", put_payload(f"{tmp_path}/file/below", b""))[0] == errno.ENOTDIR
    assert agent.refusal("put", put_payload(f"{tmp_path}/{'x' * 300}", b""))[0] == errno.ENAMETOOLONG
    assert agent.refusal("put", put_payload("/proc/self/oom_score_adj", b"lots"))[0] == errno.EINVAL


def test_a_too_long_path_is_refused_and_not_truncated(agent: Running, tmp_path: Path) -> None:
    path = f"{tmp_path}/" + "./" * 2100 + "file"
    assert len(path) > 4096
    assert agent.refusal("put", put_payload(path, b"x"))[0] == errno.ENAMETOOLONG
    assert list(tmp_path.iterdir()) == []


# --- the kernel's log ------------------------------------------------------------------------------


@pytest.fixture
def kmsg() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket pair in place of /dev/kmsg and the kernel: each read takes one record, each write makes one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.setblocking(False)
        yield ours, theirs


def test_records_of_the_kernels_log(start: Start, kmsg: tuple[socket.socket, socket.socket]) -> None:
    kernel, device = kmsg
    agent = start(kmsg=device)
    assert agent.ask("kmsg").payload == b"1\n"
    kernel.send(b"6,1,0,-;one\n")
    kernel.send(b"6,2,0,-;two\n")
    assert agent.ask("kmsg", b"a mark").payload == b"1\n6,1,0,-;one\n6,2,0,-;two\n"
    assert kernel.recv(100) == b"<6>a mark\n"
    assert agent.ask("kmsg").payload == b"1\n"


def test_more_records_than_one_answer_holds(start: Start, kmsg: tuple[socket.socket, socket.socket]) -> None:
    kernel, device = kmsg
    agent = start(kmsg=device)
    for number in range(5):
        kernel.send(b"%d" % number * 8000)
    first, second = agent.ask("kmsg").payload, agent.ask("kmsg").payload
    assert (first[:2], second[:2]) == (b"0\n", b"1\n")
    assert len(first) <= KMSG_ANSWER
    assert first[2:] + second[2:] == b"".join(b"%d" % number * 8000 for number in range(5))


def test_a_line_for_the_log_is_limited(start: Start, kmsg: tuple[socket.socket, socket.socket]) -> None:
    kernel, device = kmsg
    agent = start(kmsg=device)
    assert agent.ask("kmsg", b"x" * 251).verb == "done"
    assert kernel.recv(1000) == b"<6>" + b"x" * 251 + b"\n"
    assert agent.refusal("kmsg", b"x" * 252)[0] == errno.EMSGSIZE


def test_an_error_of_the_log_device(start: Start, kmsg: tuple[socket.socket, socket.socket]) -> None:
    kernel, device = kmsg
    agent = start(kmsg=device)
    kernel.close()
    assert agent.refusal("kmsg", b"a mark") == (errno.EPIPE, f"write to /dev/kmsg: {os.strerror(errno.EPIPE)}")
    assert agent.ask("kmsg").payload == b"1\n"


def test_a_file_that_is_not_a_log(start: Start, tmp_path: Path) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    agent = start(kmsg=folder)
    os.close(folder)
    assert agent.refusal("kmsg") == (errno.EISDIR, f"read of /dev/kmsg: {os.strerror(errno.EISDIR)}")


@pytest.mark.parametrize(
    ("number", "advice"), [(errno.EPERM, "boot without printk.devkmsg=off"), (errno.ENOENT, "CONFIG_PRINTK")]
)
def test_a_guest_without_a_log(start: Start, number: int, advice: str) -> None:
    refused, reason = start(kmsg=-number).refusal("kmsg", b"a mark")
    assert refused == number
    assert advice in reason


# --- the shell -------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, str]]:
    """The user's end of a terminal, and the path of the other end."""
    master, slave = pty.openpty()
    yield master, os.ttyname(slave)
    os.close(slave)
    os.close(master)


def _until(master: int, expected: bytes) -> None:
    seen = b""
    while expected not in seen:
        seen += os.read(master, 1000)


def test_an_interactive_shell(start: Start, terminal: tuple[int, str]) -> None:
    master, name = terminal
    agent = start(terminal=name)
    first = agent.ask("shell", number=1)
    _until(master, b"guest# ")
    os.write(master, b"echo $((6 * 7)) $TERM\n")
    _until(master, b"42 vt102")
    assert agent.ask("shell", number=2).text == first.text, "there is only one shell"
    os.write(master, b"exit 5\n")
    assert agent.next() == Frame("exit", 2, b"status 5")
    assert agent.ask("shell", number=3).text != first.text
    _until(master, b"guest# ")
    os.write(master, b"exit\n")
    assert agent.next() == Frame("exit", 3, b"status 0")


def test_the_terminals_size_is_set(start: Start, terminal: tuple[int, str]) -> None:
    master, name = terminal
    agent = start(terminal=name)
    assert agent.ask("size", b"30 100") == Frame("done", 1, b"30 100")
    assert termios.tcgetwinsize(master) == (30, 100)
    for payload in (b"", b"30", b"rows columns"):
        assert agent.refusal("size", payload)[0] == errno.EINVAL


def test_a_missing_terminal_or_shell(start: Start) -> None:
    agent = start(shell="/nowhere/busybox")
    assert agent.refusal("size", b"30 100")[0] == errno.ENOENT
    number, reason = agent.refusal("shell")
    assert (number, reason) == (errno.ENOENT, f"no busybox in this guest: {os.strerror(errno.ENOENT)}")
    agent = start()
    assert agent.ask("shell").verb == "started"
    assert agent.next() == Frame("exit", 1, b"status 127")


# --- frames ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        *(b"\n", b"ping\n", b"ping 1\n", b"ping 1 \n", b"ping  0\n", b"ping x 0\n", b"ping 1 x\n", b"ping 1 0 x\n"),
        *(b"ping 1 0 \n", b"ping -1 0\n", b"ping 1 -1\n", b"ping +1 0\n", b"ping 4294967296 0\n"),
        *(b"ping 1 18446744073709551616\n", b"ping 1 0\0\n", b"ping\x001 0\n", b"\xff\xfe 1\n", b"x" * 127 + b"\n"),
    ],
)
def test_a_malformed_header_ends_the_agent(agent: Running, header: bytes) -> None:
    agent.send(header)
    number, reason = agent.failure()
    assert number == errno.EPROTO
    assert "expected 'VERB ID LENGTH'" in reason


def test_an_endless_header_ends_the_agent(agent: Running) -> None:
    agent.send(b"x" * 128)
    assert agent.failure() == (errno.EPROTO, f"the host sent no header in 128 bytes: {os.strerror(errno.EPROTO)}")


def test_the_longest_header_is_accepted(agent: Running) -> None:
    verb = "x" * (128 - len(" 1 0\n"))
    assert agent.refusal(verb) == (errno.ENOSYS, f"request '{verb}': {os.strerror(errno.ENOSYS)}")


def test_the_size_of_a_payload_is_limited(agent: Running) -> None:
    assert agent.ask("ping", b"x" * PAYLOAD_MAX).verb == "done"
    agent.send(b"ping 1 %d\n" % (PAYLOAD_MAX + 1))
    assert agent.failure()[0] == errno.EMSGSIZE


def test_a_request_without_enough_memory_is_refused(start: Start, tmp_path: Path) -> None:
    """The request is read to its end, and the next one is answered."""
    agent = start(options=":max_allocation_size_mb=2")
    assert agent.refusal("ping", b"x" * (3 << 20))[0] == errno.ENOMEM
    with (tmp_path / "large").open("wb") as file:
        file.truncate(3 << 20)
    assert agent.refusal("get", str(tmp_path / "large").encode())[0] == errno.ENOMEM
    assert agent.ask("ping").verb == "done"


def test_input_without_enough_memory_is_reported_as_lost(start: Start) -> None:
    agent = start(options=":max_allocation_size_mb=2")
    agent.start("sh", "-c", "read line; exec cat", verb="pipe")
    agent.send(*[Frame("in", 1, b"x" * (3 << 19))] * 2)
    seen, _ = agent.until("failed", 0)
    assert [frame.verb for frame in seen] == ["took"]
    agent.finish(_FAILED)


def test_a_frame_may_arrive_in_parts(agent: Running) -> None:
    for byte in Frame("ping", 3, b"xyz").encode():
        agent.send(bytes([byte]))
    assert agent.next() == Frame("done", 3, b"pong")


def test_several_frames_may_arrive_together(agent: Running) -> None:
    agent.send(*(Frame("ping", number, b"x" * number) for number in range(1, 200)))
    assert [agent.next().id for _ in range(1, 200)] == list(range(1, 200))


@pytest.mark.parametrize("left", [b"", b"pi", b"ping 1 4\n", b"ping 1 4\nxx"])
def test_the_agent_ends_when_the_host_closes_its_end(agent: Running, left: bytes) -> None:
    agent.send(left)
    agent.finish()


def test_the_host_closes_its_end_while_a_program_prints(agent: Running) -> None:
    agent.start("yes")
    assert agent.next().verb == "out"
    agent.finish()


def test_a_lossy_line_gets_a_count_of_the_bytes_read(start: Start) -> None:
    agent = start(lossy=True)
    agent.send(Frame("ping", 1, b"x" * 10_000))
    seen, _ = agent.until("done", 1)
    assert {(frame.verb, frame.id) for frame in seen} == {("read", 0)}
    assert all(int(frame.text) >= 2048 for frame in seen)
    assert 10_000 - 2048 < sum(int(frame.text) for frame in seen) <= 10_000 + len(b"ping 1 10000\n")


harmless = st.builds(
    Frame,
    st.sampled_from(["ping", "in", "kill", "size", "kmsg", "pipe", "nonsense", ""]),
    st.sampled_from([0, 1, 4294967295]),
    st.binary(max_size=20).map(lambda data: data.replace(b"\0", b"\0\0true\0", 1) if data[:1] == b"\0" else data),
).map(Frame.encode)


@settings(max_examples=60)
@given(said=st.lists(harmless | st.binary(max_size=200), max_size=6))
def test_any_request_is_answered_or_refused(
    program: Path, tmp_path_factory: pytest.TempPathFactory, said: list[bytes]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    agent = Running(program, folder)
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        agent.send(*said)
    agent.end.close()
    agent.events.close()
    assert (agent.process.wait(_TIMEOUT_S) in (0, _FAILED), agent.complaints()) == (True, "")
