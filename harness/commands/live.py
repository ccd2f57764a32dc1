"""Live machines: ``hugepfn start``, ``shell``, ``ssh``, ``exec``, ``rerun``, ``log``, ``ps`` and ``stop``."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import queue
import re
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.commands.options import config_options, level_option, scenarios_argument
from harness.config import MachineConfig
from harness.errors import HugepfnError, KernelDied, MachineryError, UsageError
from harness.events import Event, Note

if TYPE_CHECKING:
    from rich.table import Table

    from harness.guest.job import ExitStatus
    from harness.guest.sshd import SshAddress
    from harness.session.client import SessionClient
    from harness.session.registry import About
    from harness.session.session import Session

session_option = click.option("--session", "-s", metavar="NAME", help="which session  [default: the only one]")
gdb_option = click.option("--gdb", is_flag=True, help="wait for gdb on a Unix socket, and print the command")
_WIDE = 1000  # the terminal wraps a long state; we do not cut it
_STATE_TIMEOUT_S = 10.0
_SIGNALLED = 128  # a shell adds this to the number of a signal


@functools.cache
def say(event: Event) -> None:
    """Print a line of progress on stderr, once, apart from the command's output."""
    click.echo(f"hugepfn: {event}", err=True)


def client_of(name: str | None) -> SessionClient:
    """Return the session with this name, or the only one.

    :raises UsageError: there is no such session.
    """
    from harness.session.client import SessionClient
    from harness.session.registry import choose

    return SessionClient(choose(name))


def show_gdb(client: SessionClient) -> None:
    """Stop a session's machine for gdb and say how to attach, with the symbols moved by the KASLR offset."""
    stub = client.call("gdb")
    if stub.note:
        say(Note(stub.note))
    click.echo(stub.command)
    say(Note("the machine stands still until gdb lets it go on (continue)"))


def _start(name: str | None, config: MachineConfig, *, with_us: bool, kept: str | None = None) -> About:
    from harness.session.server import Start
    from harness.session.starting import start_session

    stem = re.sub(r"[^\w.-]+", "-", kept or Path(str(config.kernel)).name)[:30].strip("-.") or "session"
    return start_session(Start(name or f"{stem}*", config, kept), say, with_us=with_us)


@click.command()
@click.option("--name", metavar="NAME", help="of the session  [default: after the kernel]")
@gdb_option
@config_options()
def start(name: str | None, gdb: bool, config: MachineConfig) -> None:
    """Start a session, a live machine that runs until `hugepfn stop`, and print its name."""
    from harness.session.client import SessionClient

    about = _start(name, config, with_us=False)
    click.echo(about.name)
    if gdb:
        show_gdb(SessionClient(about))


@click.command()
@click.argument("name", required=False)
@gdb_option
@config_options()
def shell(name: str | None, gdb: bool, config: MachineConfig) -> None:
    """Open a shell on the serial line of a guest. Ctrl-] leaves it.

    NAME is a session, or a machine that --keep-vm kept. Without NAME, a new machine is started, which is a session as
    long as the shell runs, and ends with it.
    """
    from harness.guest.terminal import interact, require_terminal
    from harness.session.client import SessionClient
    from harness.session.registry import sessions

    require_terminal()
    lives = name is not None and name in [about.name for about in sessions()]
    client = client_of(name) if lives else SessionClient(_start(None, config, with_us=True, kept=name))
    try:
        if gdb:
            show_gdb(client)
            client.call("wait_until_it_runs", timeout_s=None)
        say(Note(f"{client.about.name}: Linux {client.about.release}; Ctrl-] leaves"))
        with client.shell() as (line, ended, resize):
            interact(line, resize, ended)
        if (state := client.call("state")) not in ("runs", "stands still"):
            raise KernelDied(state)
    finally:
        if not lives:
            client.stop()


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@session_option
@click.option(
    "--address", is_flag=True, help="print how another SSH client gets there; its files last as long as the session"
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(session: str | None, address: bool, command: tuple[str, ...]) -> None:
    """Use SSH to open a login shell in a session (Ctrl-] leaves it), or to run COMMAND and return its exit status.

    The connection goes through a socket that only you can access, with a key made for this machine. Nothing else is
    let in.
    """
    from harness.guest.job import Stream
    from harness.guest.ssh import Ssh
    from harness.guest.terminal import interact, require_terminal
    from harness.outputs import write_all

    client = client_of(session)
    if not command and not address:
        require_terminal()
    where = client.call("ssh_address")
    if address:
        click.echo(_openssh_line(client.about.name, where))
        return
    with Ssh(where) as connection:
        if not command:
            rows, columns = os.get_terminal_size()[::-1]
            with contextlib.closing(connection.shell(os.environ.get("TERM", "vt102"), columns, rows)) as channel:
                interact(channel, lambda rows, columns: channel.resize_pty(columns, rows))
            return
        stdin = b"" if sys.stdin.isatty() else sys.stdin.fileno()

        lost: list[OSError] = []

        def sink(stream: Stream, data: bytes) -> None:
            try:
                write_all(1 if stream is Stream.OUT else 2, data)
            except OSError as error:
                lost.append(error)
                raise

        try:
            ended = connection.run(" ".join(command), stdin=stdin, sink=sink)
        except MachineryError:
            if lost and lost[0].errno == errno.EPIPE:
                sys.exit(_SIGNALLED + signal.SIGPIPE)  # as a program on this host would
            raise
    _leave_as(ended.exit)


def _openssh_line(name: str, where: SshAddress) -> str:
    """Write what OpenSSH needs into the session's folder, and return the command that uses it."""
    from harness.guest.sshd import openssh_files
    from harness.session.registry import folder_of

    folder = folder_of(name)
    for file, text in openssh_files(where, folder).items():
        file.unlink(missing_ok=True)
        file.touch(mode=0o600)
        file.write_text(text)
    return shlex.join(["ssh", "-F", str(folder / "ssh_config"), name])


def _leave_as(ended: ExitStatus) -> None:
    """Exit with the status of a command in the guest, or with 128 plus the number of its signal, as a shell does."""
    sys.exit(ended.status if ended.signal is None else _SIGNALLED + ended.signal)


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--session", "-s", metavar="NAME", help="which session  [default: a fresh machine]")
@config_options()
@click.option(
    "--env", "-e", "environment", multiple=True, metavar="NAME=VALUE", help="for the program; may be repeated"
)
@click.argument("program")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARG...]")
def exec_(
    session: str | None, environment: tuple[str, ...], program: str, words: tuple[str, ...], config: MachineConfig
) -> None:
    """Run a program of yours in a guest: in a session, or (without --session) in a new machine.

    A PROGRAM with a slash is a file on this host, which is sent to the guest with its shared libraries. Otherwise it is
    a command of the guest. The device is bound to vfio-pci; VFIO_GROUP and VFIO_BDF name its group and address, and
    {group} and {bdf} are replaced in every ARG. The program gets this command's standard streams and signals, and its
    exit status is returned (128 and more: a signal).
    """
    for wrong in (one for one in environment if "=" not in one):
        raise UsageError(f"--env {wrong!r}: expected NAME=VALUE")
    file = str(Path(program).absolute()) if "/" in program else None
    if file is not None and not Path(file).is_file():
        raise UsageError(f"{program}: no such file (a command of the guest's has no slash)")
    wanted = dict(one.split("=", 1) for one in environment)
    if session is not None:
        ended: ExitStatus = client_of(session).exec((program, *words), file, wanted)
        _leave_as(ended)
    with _fresh(config) as own:
        from harness.session.client import passing_signals

        signals: queue.SimpleQueue[int | None] = queue.SimpleQueue()  # a handler may put
        with passing_signals(signals.put):
            ended = own.exec((program, *words), file, wanted, (0, 1, 2), signals)
    _leave_as(ended)


@contextlib.contextmanager
def _fresh(config: MachineConfig) -> Iterator[Session]:
    from harness.machine import preparation
    from harness.machine.vm import VM
    from harness.session.session import Session

    preparation.preflight(config, say)
    with VM(preparation.resolve(config, say), config=config, say=say) as vm:
        yield Session(vm)


@click.command()
@scenarios_argument
@session_option
@level_option
@click.option("--quiet", "-q", is_flag=True, help="claims and verdicts only, no entries")
def rerun(scenarios: tuple[str, ...], session: str | None, levels: Sequence[str], quiet: bool) -> None:
    """Run scenarios in a session with their current files. There is no boot, and only changed programs are compiled and
    sent.

    SCENARIO is a name from `hugepfn list`, or the path of a test file of your own. The machine keeps everything that
    earlier runs did to it.
    """
    width = os.get_terminal_size(1).columns if sys.stdout.isatty() else None
    sys.stdout.flush()
    wanted = tuple(str(Path(name).absolute()) if name.endswith(".py") else name for name in scenarios)
    status = client_of(session).call(
        "rerun",
        descriptors=[1],
        timeout_s=None,
        scenarios=wanted,
        levels=tuple(levels),
        entries=not quiet,
        width=width,
    )
    sys.exit(int(status))


@click.command()
@session_option
def log(session: str | None) -> None:
    """Print the kernel log of a session."""
    click.echo(client_of(session).call("log"), nl=False)


def _print_table(table: Table, otherwise: str) -> None:
    """Print a table without interpreting markup, because a guest may have written what is in brackets."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, width=_WIDE)
    console.print(table if table.row_count else otherwise, soft_wrap=True)


@click.command()
def ps() -> None:
    """Show your sessions."""
    from rich.table import Table

    from harness.session.client import SessionClient
    from harness.session.registry import sessions

    table = Table(box=None, pad_edge=False)
    for heading in ("session", "pid", "kernel", "release", "age", "state"):
        table.add_column(heading, no_wrap=True)
    for about in sessions():
        age = str(timedelta(seconds=int(time.time() - about.started_at)))
        try:
            state = str(SessionClient(about).call("state", timeout_s=_STATE_TIMEOUT_S)).splitlines()[0]
        except HugepfnError as error:  # it is just ending
            state = str(error)
        table.add_row(about.name, str(about.pid), about.kernel, about.release, age, state)
    _print_table(table, "no sessions")


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME...]")
@click.option("--all", "everything", is_flag=True, help="every session of this user")
def stop(names: tuple[str, ...], everything: bool) -> None:
    """End the named sessions, or the only one."""
    from harness.session.client import SessionClient
    from harness.session.registry import choose, held

    there = {about.name: about for about in held()}
    named = [] if everything else [there.get(name or "") or choose(name) for name in names or (None,)]
    chosen = named or list(there.values())
    for about in chosen:
        with contextlib.suppress(ProcessLookupError, HugepfnError if everything else ProcessLookupError):
            SessionClient(about).stop()


@click.command("serve-session", hidden=True)
@click.argument("descriptor", type=int)
def serve_session(descriptor: int) -> None:
    """Run the process of a session; other commands start it."""
    from multiprocessing.connection import Connection

    from harness.session.server import serve

    serve(Connection(descriptor))


@click.command()
@click.option("--rm", "unwanted", multiple=True, metavar="NAME", help="throw it away; may be repeated")
def kept(unwanted: tuple[str, ...]) -> None:
    """Show the machines that --keep-vm kept (enter one with `hugepfn shell NAME`), or remove some."""
    from rich.table import Table

    from harness.machine import kept as machines

    if unwanted:
        for name in unwanted:
            machines.remove(name)
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "MiB", "kernel", "kept of"):
        table.add_column(heading, no_wrap=True)
    for name, one in machines.everything():
        if one is None:
            table.add_row(name, "", "", "another version of hugepfn: it can only be thrown away")
        else:
            table.add_row(name, str(one.state.stat().st_size >> 20), one.kernel, one.why)
    _print_table(table, "no kept machines")


COMMANDS = (kept, start, shell, ssh, exec_, rerun, log, ps, stop, serve_session)
