"""Options that several commands share."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from harness.config import MachineConfig, default_of, name_of, option_of
from harness.levels import PAGE_SIZES, level_label
from harness.selection.selected import Selected

if TYPE_CHECKING:
    from harness.campaign.kernels import RunOptions
    from harness.campaign.report import PageRequest
    from harness.verdict.expected.expectation import Expectation

FILE = click.Path(path_type=Path, dir_okay=False)
F = TypeVar("F", bound=Callable[..., Any])


class _TestWord(click.ParamType[Any]):
    """A word that selects tests, as a :class:`Selected`."""

    name = "TEST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Selected:  # noqa: ARG002
        """Read a word, and refuse it with hugepfn's own message if it selects nothing."""
        return value if isinstance(value, Selected) else Selected.parse(value)


TEST = _TestWord()
tests_argument = click.argument("words", nargs=-1, metavar="[TEST...]", type=TEST)


class _LevelChoice(click.Choice[str]):
    """A level, by its name or by the size of its page."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(level_label(value), param, ctx)


level_option = click.option(
    *("--level", "-l", "levels"),
    multiple=True,
    type=_LevelChoice(tuple(PAGE_SIZES)),
    help="only this level, also as 4K, 2M or 1G; may be repeated",
)
_EXPECT_OPTIONS = (
    click.option(
        "--expect",
        "expected",
        multiple=True,
        metavar="TEST[:CLAIM]=OUTCOME",
        help="how a test or one of its claims is expected to end: fork:pmd=fail, 'fork:pmd:NAME OF A CLAIM=fail', or "
        "=pass, =skip; an expected result does not count as a failure; may be repeated",
    ),
    click.option(
        "--expect-file",
        "expect_files",
        multiple=True,
        type=FILE,
        help="a file of such expectations, one per line, comments from # on; may be repeated",
    ),
)
_SCENARIO_OPTIONS = (
    level_option,
    *_EXPECT_OPTIONS,
    click.option(
        "--workers", "-n", type=click.IntRange(1), default=1, show_default=True, help="number of tests that run at once"
    ),
    click.option("--strict", is_flag=True, help="a precondition that is not met is a failure"),
)
_SHORT = {"kernel": "-k"}
_MACHINE = "hugepfn.machine"  # in a context's meta: show the options of the machine


class _MachineOption(click.Option):
    """An option that ``--help-machine`` explains, and ``--help`` only names."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        return super().get_help_record(ctx) if ctx.meta.get(_MACHINE) else None


def _help_machine(names: Sequence[str]) -> Callable[[F], F]:
    def show(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if not wanted:
            return
        ctx.meta[_MACHINE] = True
        options = [one for one in ctx.command.params if isinstance(one, _MachineOption)]
        formatter = ctx.make_formatter()
        with formatter.section("Options of the machine, see also docs/configuration.md"):
            formatter.write_dl([record for one in options if (record := one.get_help_record(ctx))])
        click.echo(formatter.getvalue(), nl=False)
        ctx.exit()

    text = f"explain the options of the machine: {', '.join(f'--{name}' for name in names)}"
    return click.option("--help-machine", is_flag=True, is_eager=True, expose_value=False, callback=show, help=text)


def _with(options: Sequence[Callable[[F], F]], command: F) -> F:
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def config_options(*names: str, without: Sequence[str] = ()) -> Callable[[F], F]:
    """Add options for fields of :class:`MachineConfig`; the command gets one argument, ``config``, with all of them.

    :param names: the fields; none for all of them.
    """
    wanted = [one for one in fields(MachineConfig) if one.name in (names or (one.name,)) and one.name not in without]
    options: list[Callable[[F], F]] = []
    for one in wanted:
        option, name = option_of(one), name_of(one)
        words = f"--{name}/--no-{name}" if option.is_flag else f"--{name}"
        decls = (*filter(None, (_SHORT.get(name),)), words, one.name)
        text = f"{option.help}  [default: {default_of(one)}]"
        kind = click.Option if name in _SHORT or names else _MachineOption
        options.append(click.option(*decls, cls=kind, metavar=option.metavar or None, default=None, help=text))
    if not names:
        options.append(_help_machine([name_of(one) for one in wanted if name_of(one) not in _SHORT]))

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def with_config(*args: Any, **given: Any) -> Any:
            config = MachineConfig.read({one.name: given.pop(one.name) for one in wanted})
            return command(*args, config=config, **given)

        return _with(options, cast(F, with_config))

    return decorate


def given_config_options() -> list[str]:
    """Return the options of a machine that the current command was given."""
    given = click.get_current_context().params
    return [f"--{name_of(one)}" for one in fields(MachineConfig) if given.get(one.name) is not None]


def scenario_options(command: F) -> F:
    """Add the options for running scenarios, apart from those of the machine."""
    return _with(_SCENARIO_OPTIONS, command)


def expect_options(command: F) -> F:
    """Options that say how tests are expected to end."""
    return _with(_EXPECT_OPTIONS, command)


def expectations(options: Mapping[str, Any]) -> tuple[Expectation, ...]:
    """What the options of :func:`expect_options` say.

    :raises UsageError: one of them has another form, or a file cannot be read.
    """
    if not options["expected"] and not options["expect_files"]:
        return ()
    from harness.selection.expected import read

    return read(options["expected"], options["expect_files"])


scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    envvar="HUGEPFN_SCHEDULER",
    default="",
    help="run on the workers of this Dask scheduler, as tcp://HOST:8786  [environment: HUGEPFN_SCHEDULER]",
)


resume_option = click.option(
    "--resume", is_flag=True, help="go on with this campaign, which was interrupted: run only what has no result yet"
)


def campaign_options(command: F) -> F:
    """Add the options for several kernels: those of ``hugepfn run`` except the kernel and the output."""
    return scenario_options(scheduler_option(config_options(without=["kernel"])(command)))


def report_options(what: str) -> Callable[[F], F]:
    """Add the options ``--json``, ``--html`` and ``--mail`` of a command that reports on several kernels.

    :param what: the contents of the JSON file.
    """
    json_option = click.option("--json", "json_file", type=FILE, help=f"write {what} to this file")
    html_option = click.option("--html", "html_file", type=FILE, help="write one self-contained page to this file")
    url_option = click.option(
        "--source-url",
        metavar="URL",
        help="where kernel functions link to in the page: the base of an Elixir site, or an address with {version}, "
        "{file}, {line} and {function}  [default: https://elixir.bootlin.com/linux]",
    )
    return lambda command: json_option(html_option(url_option(command)))


mail_option = click.option(
    "--mail", is_flag=True, help="print the answer for a mail: 72 columns, no colour, and the command to run it again"
)


def page_request(options: dict[str, Any]) -> PageRequest:
    """Return the request for a page from the options of :func:`report_options`."""
    from harness.campaign.report import PageRequest
    from harness.source_links import ELIXIR, SourceSite

    site = ELIXIR if options["source_url"] is None else SourceSite(options["source_url"])
    return PageRequest(options["html_file"], shlex.join(["hugepfn", *sys.argv[1:]]), options.get("mail", False), site)


def run_options(config: MachineConfig, options: dict[str, Any]) -> RunOptions:
    """Return the options of :func:`campaign_options` as a value."""
    from harness.campaign.kernels import RunOptions

    expected = expectations(options)
    return RunOptions(config, options["levels"], options["workers"], options["strict"], options["scheduler"], expected)
