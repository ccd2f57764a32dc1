"""Work in a live machine: ``hugepfn shell``, ``ssh``, ``exec`` and ``rerun``."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import config_options, expect_options, expectations, level_option, tests_argument
from harness.commands.sessions import (
    client_of,
    client_unless_new,
    gdb_option,
    kept_option,
    note,
    say,
    session_option,
    show_gdb,
    start_machine,
)
from harness.config import MachineConfig
from harness.errors import KernelDied, MachineryError, UsageError

if TYPE_CHECKING:
    from harness.guest.job import ExitStatus
    from harness.guest.sshd import SshAddress
    from harness.selection.selected import Selected
    from harness.session.session import Session

_SIGNALLED = 128  # a shell adds this to the number of a signal


@click.command()
@session_option
@kept_option
@gdb_option
@config_options()
def shell(session: str | None, kept: str | None, gdb: bool, config: MachineConfig) -> None:
    """Open a shell on the serial line of a guest. Ctrl-] leaves it.

    Without a session, with --kept, or with options of a machine, a machine is started. It is a session that ends with
    the shell.
    """
    from harness.guest.terminal import interact, require_terminal
    from harness.session.client import SessionClient

    require_terminal()
    if kept is not None and session is not None:
        raise UsageError(f"--session {session} and --kept {kept} are two machines; give only one of them")
    there = client_unless_new(session) if kept is None else None
    client = there or SessionClient(start_machine(None, config, with_us=True, kept=kept))
    try:
        if gdb:
            show_gdb(client)
            client.call("wait_until_it_runs", timeout_s=None)
        note(f"{client.about.name}: Linux {client.about.release}; Ctrl-] leaves")
        with client.shell() as (line, ended, resize):
            interact(line, resize, ended)
        if how := client.call("state").ended:
            raise KernelDied(how)
    finally:
        if there is None:
            client.stop()


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@session_option
@click.option(
    "--address", is_flag=True, help="print how another SSH client connects; its files are removed with the session"
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(session: str | None, address: bool, command: tuple[str, ...]) -> None:
    """Use SSH to run a command in a session, or a login shell.

    The exit status is that of COMMAND. Without it, a login shell is opened, which Ctrl-] leaves.

    The connection goes through a socket that only you can access, with a key that was made for this machine. No other
    key is accepted.
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
    with client.attending(), Ssh(where) as connection:
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
@session_option
@config_options()
@click.option(
    "--env", "-e", "environment", multiple=True, metavar="NAME=VALUE", help="for the program; may be repeated"
)
@click.argument("program")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARG...]")
def exec_(
    session: str | None, environment: tuple[str, ...], program: str, words: tuple[str, ...], config: MachineConfig
) -> None:
    """Run a program of yours in a session. Without one, or with options of a machine, in a new machine.

    A PROGRAM with a slash is a file on this host, which is sent to the guest with its shared libraries. Otherwise it is
    a command of the guest. The device is bound to vfio-pci; VFIO_GROUP and VFIO_BDF name its group and address, and
    {group} and {bdf} are replaced in every ARG. The program gets this command's standard streams and signals, and its
    exit status is returned (128 and more: a signal).
    """
    for wrong in (one for one in environment if "=" not in one):
        raise UsageError(f"--env {wrong!r}; expected NAME=VALUE")
    file = str(Path(program).absolute()) if "/" in program else None
    if file is not None and not Path(file).is_file():
        raise UsageError(
            f"{program}: no such file; expected a program on this host, or a guest command without a slash"
        )
    wanted = dict(one.split("=", 1) for one in environment)
    if (client := client_unless_new(session)) is not None:
        ended: ExitStatus = client.exec((program, *words), file, wanted, say)
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
@tests_argument
@session_option
@level_option
@expect_options
@click.option("--quiet", "-q", is_flag=True, help="one line per case")
def rerun(words: tuple[Selected, ...], session: str | None, levels: Sequence[str], quiet: bool, **options: Any) -> None:
    """Run tests in a session with their current files.

    Nothing is booted, and only changed programs are compiled and sent, so this is the fastest way to try a change in a
    test. The machine keeps the effects of earlier runs; `hugepfn run` starts from new machines.

    TEST is as for `hugepfn run`:

    \b
        hugepfn start --kernel debian:6.12
        hugepfn rerun fork --level pud
        hugepfn rerun ./test_mine.py
    """
    said = expectations(options)
    if said:
        from harness.selection.expected import absolute  # imports pytest, for which this command need not wait

        said = absolute(said)
    width = os.get_terminal_size(1).columns if sys.stdout.isatty() else None
    sys.stdout.flush()
    status = client_of(session).call(
        "rerun",
        descriptors=[1],
        timeout_s=None,
        words=words,
        levels=tuple(levels),
        entries=not quiet,
        width=width,
        expected=said,
    )
    sys.exit(int(status))
