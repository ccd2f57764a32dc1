"""The life of sessions: ``hugepfn start``, ``ps``, ``pause``, ``resume``, ``log``, ``stop``; and ``kept``."""

from __future__ import annotations

import contextlib
import functools
import re
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.commands.options import config_options, given_config_options
from harness.config import MachineConfig
from harness.errors import HugepfnError, MachineryError, UsageError
from harness.outputs import print_table

if TYPE_CHECKING:
    from rich.table import Table

    from harness.events import Event
    from harness.session.client import SessionClient
    from harness.session.registry import About

session_option = click.option("--session", "-s", metavar="NAME", help="name of the session  [default: the only one]")
kept_option = click.option("--kept", metavar="NAME", help="bring back a machine that `hugepfn kept` shows")
gdb_option = click.option("--gdb", is_flag=True, help="wait for gdb on a Unix socket, and print the command")
_WIDE = 1000  # the terminal wraps a long state; we do not cut it
_STATE_TIMEOUT_S = 10.0


@functools.cache
def say(event: Event) -> None:
    """Print a line of progress on stderr, once, apart from the command's output."""
    click.echo(f"hugepfn: {event}", err=True)


def note(words: str) -> None:
    """Print a line of progress that is nothing but words."""
    from harness.events import Note

    say(Note(words))


def client_of(name: str | None) -> SessionClient:
    """Return the session with this name, or the only one.

    :raises UsageError: there is no such session.
    """
    from harness.session.client import SessionClient
    from harness.session.registry import choose

    return SessionClient(choose(name))


def client_unless_new(name: str | None) -> SessionClient | None:
    """Return the session that a command means, or None if it wants a new machine.

    It does if it has options of a machine, or if no session runs.

    :raises UsageError: there is no such session, or a session and options of a new machine were given.
    """
    from harness.session.registry import sessions

    described = given_config_options()
    if described and name is not None:
        raise UsageError(
            f"--session {name} is a machine that runs, and {described[0]} describes a new one; give either"
        )
    if described:
        return None
    if name is None and not sessions():
        note("no session is running; starting a machine for this command only")
        return None
    return client_of(name)


def start_machine(name: str | None, config: MachineConfig, *, with_us: bool, kept: str | None = None) -> About:
    """Start a session.

    :param name: None for a name that is made from the kernel.
    :param with_us: it ends when this process ends.
    :param kept: the kept machine to restore, instead of a new one.
    """
    from harness.session.server import Start
    from harness.session.starting import start_session

    stem = re.sub(r"[^\w.-]+", "-", kept or Path(str(config.kernel)).name)[:30].strip("-.") or "session"
    return start_session(Start(name or f"{stem}*", config, kept), say, with_us=with_us)


def show_gdb(client: SessionClient) -> None:
    """Stop a session's machine for gdb and say how to attach, with the symbols moved by the KASLR offset."""
    stub = client.call("gdb")
    if stub.note:
        note(stub.note)
    click.echo(stub.command)
    resume = f"`hugepfn resume -s {client.about.name}`"
    note(f"the machine stands still until `continue` in gdb lets it go on, or {resume}")


@click.command()
@click.option("--session", "-s", metavar="NAME", help="name of the session  [default: made from the kernel]")
@kept_option
@gdb_option
@config_options()
def start(session: str | None, kept: str | None, gdb: bool, config: MachineConfig) -> None:
    """Start a session, and print its name.

    A session is a live machine that runs until `hugepfn stop`. All other commands for live machines use it: the one
    named by -s NAME, or the only one.
    """
    from harness.session.client import SessionClient

    about = start_machine(session, config, with_us=False, kept=kept)
    click.echo(about.name)
    if gdb:
        show_gdb(SessionClient(about))


def _print_table(table: Table, otherwise: str) -> None:
    """Print a table without interpreting markup, because a guest may have written what is in brackets."""
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, width=_WIDE)
    if table.row_count:
        print_table(console, table)
    else:
        console.print(otherwise, soft_wrap=True)


@click.command()
def ps() -> None:
    """Show your sessions.

    A session is a live machine that `hugepfn start` has started and `hugepfn stop` ends. The columns are:

    \b
    session  the name for -s
    pid      the process that holds the machine
    kernel   as requested; release is what it is
    age      since the start
    state    runs, stands still (since when and why), or how it ended
    """
    from rich.table import Table

    from harness.session.client import SessionClient
    from harness.session.registry import sessions
    from harness.session.state import state_words

    table = Table(box=None, pad_edge=False)
    for heading in ("session", "pid", "kernel", "release", "age", "state"):
        table.add_column(heading, no_wrap=True)
    for about in sessions():
        age = str(timedelta(seconds=int(time.time() - about.started_at)))
        try:
            state = state_words(SessionClient(about).call("state", timeout_s=_STATE_TIMEOUT_S))
        except HugepfnError as error:  # it is ending
            state = str(error)
        table.add_row(about.name, str(about.pid), about.kernel, about.release, age, state)
    _print_table(table, "no sessions")


@click.command()
@session_option
def log(session: str | None) -> None:
    """Print the kernel log of a session."""
    click.echo(client_of(session).call("log"), nl=False)


@click.command()
@session_option
def pause(session: str | None) -> None:
    """Stop the vCPUs of a session until `hugepfn resume`.

    Meanwhile you can walk its page tables (`hugepfn walk`), and no entry changes between two walks. Commands that need
    the guest's help say that it stands still.
    """
    from harness.session.state import halt_words

    client = client_of(session)
    before = client.call("pause")
    if before.halt is not None:
        click.echo(f"{client.about.name}: nothing to do, {halt_words(before.halt, client.about.name)}")
    else:
        click.echo(f"{client.about.name} is paused; `hugepfn resume -s {client.about.name}` lets it go on")


@click.command()
@session_option
def resume(session: str | None) -> None:
    """Let a machine that stands still go on.

    This undoes `hugepfn pause`, and also `hugepfn gdb` if no gdb is attached.
    """
    client = client_of(session)
    before = client.call("resume")
    click.echo(f"{client.about.name} {'runs' if before.halt is not None else 'was running already'}")


@click.command()
@click.option(
    "--session", "-s", "names", multiple=True, metavar="NAME", help="may be repeated  [default: the only one]"
)
@click.option("--all", "everything", is_flag=True, help="every session of this user")
def stop(names: tuple[str, ...], everything: bool) -> None:
    """End sessions, with their machines."""
    from harness.session.client import SessionClient
    from harness.session.registry import choose, held

    there = {about.name: about for about in held()}
    named = [] if everything else [there.get(name or "") or choose(name) for name in names or (None,)]
    troubles = []
    for about in named or there.values():
        try:
            with contextlib.suppress(ProcessLookupError):
                SessionClient(about).stop()
            click.echo(f"stopped the session {about.name}")
        except HugepfnError as error:
            troubles.append(str(error))
    if troubles:
        raise MachineryError("\n".join(troubles))
    if not named and not there:
        click.echo("no sessions")


@click.command("serve-session", hidden=True)
@click.argument("descriptor", type=int)
def serve_session(descriptor: int) -> None:
    """Run the process of a session; other commands start it."""
    from multiprocessing.connection import Connection

    from harness.session.server import serve

    serve(Connection(descriptor))


@click.command()
@click.option("--rm", "unwanted", multiple=True, metavar="NAME", help="remove it; may be repeated")
def kept(unwanted: tuple[str, ...]) -> None:
    """Show or remove the machines that --keep-vm kept.

    Each was saved with its memory when a test failed, so the processes of the test still wait at their checkpoint.
    `hugepfn shell --kept NAME` and `hugepfn start --kept NAME` restore it, any number of times. It stays in the cache
    until you remove it.
    """
    from rich.table import Table

    from harness.machine import kept as machines

    if unwanted:
        for name in unwanted:
            size_bytes = machines.remove(name)
            click.echo(f"removed the kept machine {name} ({size_bytes >> 20} MiB)")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "MiB", "kernel", "kept of"):
        table.add_column(heading, no_wrap=True)
    for name, one in machines.everything():
        if one is None:
            table.add_row(name, "", "", "another version of hugepfn: it can only be removed")
        else:
            table.add_row(name, str(one.state.stat().st_size >> 20), one.kernel, one.why)
    _print_table(table, "no kept machines")
