"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from harness.campaign.kernels import RunOptions

LEVELS = ("pte", "pmd", "pud")

FILE = click.Path(path_type=Path, dir_okay=False)
QEMU_VARIABLE = "HUGEPFN_QEMU"  # as in harness/qemu/binary.py, which --help does not have to import
F = TypeVar("F", bound=Callable[..., Any])

scenarios_argument = click.argument("scenarios", nargs=-1, metavar="[SCENARIO...]")


def _default_kernel() -> str:
    from harness.kernel import default_kernel

    return default_kernel().spec


kernel_option = click.option(
    *("--kernel", "-k"),
    default=_default_kernel,
    show_default="debian, the newest; host where there is no Debian mirror",
    metavar="SPEC",
    help="debian[:6.12[@SUITE]]; host, the kernel that runs here; a bzImage, a vmlinux, or a folder: a build tree, or "
    "one with vmlinuz, config and lib/modules; or built: tree:PATH[@REV][+PATCH...], debsrc:6.12[+PATCH...]",
)
modules_option = click.option(
    "--modules", type=click.Path(path_type=Path), metavar="DIR", help="the modules of a kernel given by path"
)
level_option = click.option(
    *("--level", "-l", "levels"),
    multiple=True,
    type=click.Choice(LEVELS),
    help="only this level; may be repeated",
)
_SCENARIO_OPTIONS = (
    level_option,
    click.option("--workers", "-n", type=click.IntRange(1), default=1, show_default=True, help="run so many at once"),
    click.option("--strict", is_flag=True, help="a premise that is not met fails"),
)


def _choose_qemu(_context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    """Put the choice into the environment, so that every child process uses the same QEMU."""
    if value:
        os.environ[QEMU_VARIABLE] = value


qemu_option = click.option(
    "--qemu",
    metavar="QEMU",
    expose_value=False,
    callback=_choose_qemu,
    help="the QEMU to use: a path, or debian:11.1[@SUITE] from the mirror  [default: HUGEPFN_QEMU, or the one in PATH]",
)
guest_option = click.option(
    "--guest",
    type=click.Choice(["initramfs", "host"]),
    default="initramfs",
    show_default=True,
    help="what the guest has for /: our init, or this host's root, copy on write",
)
_DEVICE = click.option(
    "--device",
    type=click.Choice(["pci-testdev", "ivshmem-plain", "nvme"]),
    default="pci-testdev",
    show_default=True,
    help="the device under test",
)
_MACHINE_OPTIONS = (
    _DEVICE,
    modules_option,
    qemu_option,
    click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True),
    click.option("--smp", type=click.IntRange(1, 16), default=1, show_default=True, help="number of vCPUs"),
    click.option("--memory", type=click.IntRange(256, 65536), default=1024, show_default=True, help="guest RAM in MiB"),
    click.option("--cpu", default="max", show_default=True, metavar="MODEL", help="QEMU's CPU model"),
    click.option("--append", default="", metavar="ARGS", help="words for the kernel command line: pti=on, no5lvl, ..."),
    click.option(
        "--ram-dir", type=click.Path(path_type=Path), help="where guest RAM lives  [default: /dev/shm if it fits]"
    ),
    click.option("--boot-timeout", type=float, metavar="S", help="seconds that the kernel may take to boot"),
    guest_option,
    click.option("--pvh", is_flag=True, help="start a vmlinux from a bzImage: faster under TCG, no KASLR, four levels"),
    click.option("--no-clone", is_flag=True, help="boot for every test instead of cloning a booted machine"),
)


def _with(options: Sequence[Callable[[F], F]], command: F) -> F:
    return functools.reduce(lambda decorated, option: option(decorated), reversed(options), command)


def machine_options(command: F) -> F:
    """Options for the machine that tests run on, except its kernel."""
    return _with(_MACHINE_OPTIONS, command)


def live_options(command: F) -> F:
    """Options for a machine to work in interactively."""
    return _with((kernel_option, *_MACHINE_OPTIONS), command)


def scenario_options(command: F) -> F:
    """Options for running scenarios: those of ``hugepfn run`` except the kernel and the output."""
    return _with((*_SCENARIO_OPTIONS, *_MACHINE_OPTIONS), command)


def report_options(what: str) -> Callable[[F], F]:
    """Options ``--json`` and ``--html`` of a command that reports on several kernels.

    :param what: the contents of the JSON file.
    """
    json_option = click.option("--json", "json_file", type=FILE, help=f"write {what} there")
    html_option = click.option("--html", "html_file", type=FILE, help="write one self-contained page there")
    return lambda command: json_option(html_option(command))


def run_options(options: dict[str, Any]) -> RunOptions:
    """The options of :func:`scenario_options` as a value."""
    from harness.campaign.kernels import RunOptions

    return RunOptions(
        levels=options["levels"],
        accel=options["accel"],
        smp=options["smp"],
        memory_mib=options["memory"],
        cpu=options["cpu"],
        append=options["append"],
        ram_dir=options["ram_dir"],
        boot_timeout_s=options["boot_timeout"],
        workers=options["workers"],
        pvh=options["pvh"],
        guest=options["guest"],
        device=options["device"],
        no_clone=options["no_clone"],
        strict=options["strict"],
        modules=options["modules"],
    )
