"""``hugepfn explore``: look for kernel bugs that nobody thought of."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import FILE, config_options
from harness.config import MachineConfig
from harness.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from harness.explorer.campaign import Progress
    from harness.explorer.groups import Group
    from harness.explorer.sequence import SequenceResult
    from harness.explorer.worker import Exploration
    from harness.kernel import KernelImage
    from harness.model.operation import Operation, Verb


@click.command()
@click.option("--minutes", type=click.FloatRange(0, 10_000, min_open=True), default=30.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="the same seed gives the same sequences")
@click.option("--workers", "-n", type=click.IntRange(1, 256), default=2, show_default=True)
@click.option("--length", type=click.IntRange(1, 64), default=10, show_default=True, help="operations of a sequence")
@click.option("--ops", metavar="OP,OP...", default="", help="draw only these operations: map,write,fork,mprotect")
@click.option(
    "--race", is_flag=True, help="on two vCPUs: pairs of operations against each other, accesses by two threads"
)
@click.option("--no-known-bugs", is_flag=True, help="as if the list of known bugs were empty")
@click.option(
    "--sequence",
    metavar="WORDS",
    help="run this sequence, as a finding ends with it; several, with commas between them, in one program",
)
@click.option(
    "--reproducers",
    type=click.Path(path_type=Path, file_okay=False),
    help="write a C file for each finding into this folder",
)
@click.option("--json", "json_file", type=FILE, help="write what was found to this file")
@config_options(without=["device"])
def explore(config: MachineConfig, minutes: float, seed: int, workers: int, length: int, **options: Any) -> None:
    """Look for kernel bugs: draw sequences of operations on memory, run them, check everything after each operation.

    Each sequence runs in processes of its own, on a device with RAM behind its BAR. After each operation, what it
    answered and every entry of every process is compared with what is documented, whatever levels the kernel chose.
    What fails is grouped by how it shows, and made as short as it can be, in pristine machines.

    Exit status 0: nothing but known bugs was found. 1: something was found.
    """
    import json

    from harness.campaign.progress import Live
    from harness.explorer.campaign import Progress, run_exploration
    from harness.explorer.groups import Groups
    from harness.explorer.worker import Exploration
    from harness.guest.compiler import guest_tests_dir
    from harness.outputs import check_writable, write_text
    from harness.selection.tests import bugs_of

    check_writable({"--json": options["json_file"]})
    verbs = verbs_of(options["ops"], race=options["race"])
    given = None if options["sequence"] is None else _sequences(options["sequence"])
    with Live() as live:
        two = any(op.needs_two_vcpus for one in given or () for op in one)
        task = Exploration.prepared(config, seed, length, verbs, live.say, two_vcpus=two)
        if given is not None:
            live.close()
            sys.exit(_one(task, given, options["reproducers"]))
        groups = Groups(() if options["no_known_bugs"] else bugs_of(guest_tests_dir(), task.kernel.release))

        def tell(progress: Progress, line: str) -> None:
            if line:
                live.line(line)
            live.now(str(progress))

        progress = Progress(groups)
        try:
            run_exploration(task, progress, minutes, workers, tell)
        finally:  # what was found before Ctrl-C is told, too
            live.close()
            _tell_all(progress, task.kernel, options["reproducers"])
    found = groups.to_json(task.kernel.release, seed, progress.sequences)
    write_text(options["json_file"], lambda: json.dumps(found, indent=1) + "\n")
    sys.exit(ExitCode.CLAIM_FAILED if groups.new else ExitCode.OK)


def _tell_all(progress: Progress, kernel: KernelImage, reproducers: Path | None) -> None:
    groups = progress.groups
    for number, group in enumerate(groups.new, start=1):
        click.echo("\n".join(_told(group, kernel.spec)))
        if reproducers is not None:
            _write_reproducer(reproducers / f"finding-{number}.c", group.shortest, kernel.release)
    for group in groups.known:
        click.echo(f"known bug {group.known}, {group.times} times: {group.symptom}")
    click.echo(str(progress))


def verbs_of(words: str, *, race: bool) -> tuple[Verb, ...]:
    from harness.model.draw import ALONE
    from harness.model.operation import Verb

    known = {verb.value: verb for verb in Verb}
    given = [word for word in words.replace(",", " ").split() if word]
    if unknown := [word for word in given if word not in known]:
        raise UsageError(f"--ops: no operation is called {unknown[0]!r}; expected some of: {', '.join(known)}")
    verbs = tuple(known[word] for word in given) or ALONE
    return (*verbs, Verb.RACE) if race and Verb.RACE not in verbs else verbs


def _sequences(words: str) -> tuple[tuple[Operation, ...], ...]:
    from harness.explorer.sequence import NEXT
    from harness.model.operation import Operation
    from harness.model.shrink import specified

    sequences = tuple(tuple(Operation.parse(word) for word in one.split()) for one in words.split(NEXT))
    if not all(one and specified(one) for one in sequences):
        raise UsageError("--sequence: the sequence is empty, or has an operation of which nothing is documented")
    return sequences


def _one(task: Exploration, sequences: tuple[tuple[Operation, ...], ...], reproducers: Path | None) -> ExitCode:
    """Run sequences in one program, and print what the last one shows, or the first in which something is wrong."""
    from harness.explorer.groups import detail_of, lines_of, symptom_of
    from harness.explorer.sequence import run_sequences
    from harness.machine.vm import VM

    with VM(task.kernel, task.config) as vm:
        done = run_sequences(vm, sequences)
    if not done.pristine and not any(one.failure is not None for one in done.results):
        click.echo("the kernel found something wrong, and it is not known in which sequence; run each alone")
        return ExitCode.CLAIM_FAILED
    outcome = done.results[-1]
    click.echo("\n".join(lines_of(outcome.operations, outcome.step)))
    if outcome.failure is None:
        click.echo("nothing is wrong")
        return ExitCode.OK
    click.echo(f"{symptom_of(outcome.failure)}\n{detail_of(outcome.failure)}")
    if reproducers is not None:
        _write_reproducer(reproducers / "finding-1.c", outcome, task.kernel.release)
    return ExitCode.CLAIM_FAILED


def _told(group: Group, spec: str) -> list[str]:
    from harness.explorer.groups import detail_of, lines_of
    from harness.explorer.sequence import NEXT

    shortest = group.shortest
    doubt = "" if group.confirmed else ", not seen again in a pristine machine"
    program = (*shortest.before, shortest.operations)
    words = f" {NEXT} ".join(" ".join(op.word() for op in one) for one in program)
    command = shlex.join(["hugepfn", "explore", "--kernel", spec, "--sequence", words])
    return [
        f"{group.symptom}  ({group.times} times, first sequence {group.number}{doubt})",
        *lines_of(shortest.operations, shortest.step),
        f"     {detail_of(shortest.failure)}",
        f"     {command}",
        "",
    ]


def _write_reproducer(path: Path, found: SequenceResult, release: str) -> None:
    """Write a finding as a C file that needs nothing of hugepfn."""
    from harness.bugs.__main__ import PARTS
    from harness.bugs.compose import parts
    from harness.explorer.reproducer import reproducer

    assert found.failure is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(reproducer(found.operations, found.failure, release, parts(PARTS.read_text())))
    click.echo(f"     written: {path}")
