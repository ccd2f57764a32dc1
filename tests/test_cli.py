"""Tests for the command: the exit status of each kind of end, and one line instead of a traceback. Boots no kernel."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from harness import cli, doctor
from harness.campaign import scenarios
from harness.commands.sessions import say
from harness.config import DEFAULT
from harness.errors import BootError, ClaimFailed, ExitCode, GuestProgramError, MachineryError, UsageError
from harness.host import cache, packages
from harness.kernel import ImageKind, Kconfig, KernelImage
from harness.kernel.build import tools
from harness.levels import PAGE_SIZES, level_label
from harness.machine import preparation
from harness.pagetable import LEAF_LABELS, Level
from harness.plugin import fixtures
from harness.qemu.binary import find_qemu
from harness.session import registry
from harness.session.client import SessionClient

ROOT = Path(__file__).resolve().parents[1]
IMAGE = KernelImage(
    spec="debian:6.12",
    image=Path("/k/vmlinuz"),
    kind=ImageKind.BZIMAGE,
    release="6.12.117-cloud-amd64",
    modules_dir=None,
    config=Kconfig("CONFIG_ARCH_SUPPORTS_PMD_PFNMAP=y\n"),
)


class Done(NamedTuple):
    """How the command ended."""

    status: int
    out: str
    err: str

    def one_line(self) -> str:
        """Return the error message. Fails if it is not exactly one line."""
        assert "Traceback" not in self.out + self.err
        (line,) = self.err.strip().splitlines()
        assert line.startswith("hugepfn: ")
        return line.removeprefix("hugepfn: ")


Command = Callable[..., Done]


@pytest.fixture
def hugepfn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run the command in this process, on a host with an empty cache and a script in place of QEMU."""
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\necho 'QEMU emulator version 8.2.1 (fake)'\n")
    qemu.chmod(0o755)
    for name, value in {"QEMU": qemu, "CACHE_DIR": tmp_path / "cache", "RAM_DIR": tmp_path}.items():
        monkeypatch.setenv(f"HUGEPFN_{name}", str(value))
    monkeypatch.setenv("COLUMNS", "200")
    find_qemu.cache_clear()
    say.cache_clear()

    def run(*args: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            cli.main(args)
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Done(ended.value.code, out, err)

    yield run
    find_qemu.cache_clear()


#: "mm/memory.c copy_pte_range()"
DECIDED_BY = re.compile(r"(?:arch|drivers|fs|io_uring|kernel|mm|net|virt)/[\w/.-]+\.[ch] \w+\(\)")

# --- the command line ----------------------------------------------------------------------------


def test_list_names_each_scenario_with_its_levels_and_its_claim(hugepfn: Command) -> None:
    done = hugepfn("list")
    assert (done.status, done.err) == (0, "")
    *lines, total = done.out.splitlines()
    assert len(lines) % 3 == 0
    scenarios = {}
    for head, claim, decided_by in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
        name, _, levels = head.partition("  ")
        scenarios[name] = (levels, claim.strip())
        assert claim.strip(), f"{name} has no claim"
        for function in decided_by.split(", "):
            assert DECIDED_BY.fullmatch(function.strip()), f"{name} is decided by {function!r}"
    assert scenarios["fork"][0] == "pte pmd pud"
    assert scenarios["fork"][1].startswith("fork() copies the leaf of a shared pfnmap")
    assert scenarios["calibrate_thp"][0] == "pmd"
    cases = sum(len(levels.split()) or 1 for levels, _ in scenarios.values())
    assert total == f"{len(scenarios)} scenarios, {cases} cases"


def test_vm_py_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "vm.py"), "list"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "calibrate_shmem" in done.stdout


@pytest.mark.parametrize("args", [["--help"], ["-h"], ["run", "-h"], ["doctor", "--help"]])
def test_help(hugepfn: Command, args: list[str]) -> None:
    done = hugepfn(*args)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("Usage: ")


def test_version(hugepfn: Command) -> None:
    done = hugepfn("--version")
    assert done.status == 0
    assert re.search(r"\b\d+\.\d+\.\d+\b", done.out)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rum"], "no such command 'rum'."),
        (["run", "--kernal", "x"], "no such option '--kernal'. Did you mean '--kernel'? (see `hugepfn run --help`)"),
        (["run", "--level", "p4d"], "'p4d' is not one of 'pte', 'pmd', 'pud' (see `hugepfn run --help`)"),
        (["run", "--accel", "xen"], "--accel 'xen'; valid values: auto, kvm, tcg"),
        (["run", "--smp", "17"], "--smp 17; valid values: 1 to 16"),
        (["run", "--memory", "131072"], "--memory 131072; valid values: 256 to 65536 MiB"),
        (["run", "--append", 'foo"bar'], "valid values: words, with quotation marks in pairs"),
        (["run", "--boot-timeout", "soon"], "--boot-timeout 'soon'; valid values: seconds, more than 0"),
        (["bench", "--rounds", "0"], "invalid value for '--rounds': 0 is not in the range"),
        (["build"], "missing argument 'TREE' (see `hugepfn build --help`)"),
    ],
)
def test_wrong_arguments_are_one_line(hugepfn: Command, args: list[str], words: str) -> None:
    done = hugepfn(*args)
    assert done.status == 2
    assert words in done.one_line(), "click's own errors must have our format"


def test_no_command_at_all_shows_the_commands(hugepfn: Command) -> None:
    done = hugepfn()
    assert done.status == 2
    assert re.search(r"^  run  +Run tests", done.out + done.err, re.MULTILINE)


# --- missing things ------------------------------------------------------------------------------


def test_an_unknown_scenario_gets_suggestions(hugepfn: Command) -> None:
    done = hugepfn("run", "frok")
    line = "no scenario 'frok'; did you mean 'fork' or 'vfork'? hugepfn list names them all"
    assert (done.status, done.one_line()) == (2, line)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--kernel", "/etc/passwd"], "/etc/passwd is a text file; expected an x86-64 bzImage or vmlinux"),
        (["--kernel", "./no-such-kernel"], "no-such-kernel: no such file"),
        (["--kernel", "fedora:40"], "there is no kernel 'fedora:40'"),
        (["--kernel", "debian:six"], "six"),
        (["--kernel", "debian:6.12", "--modules", "/m"], "--modules is only for the path of a kernel"),
    ],
)
def test_a_file_that_is_not_a_kernel(hugepfn: Command, args: list[str], words: str) -> None:
    done = hugepfn("run", "fork", "--accel", "tcg", *args)
    assert done.status == 2
    assert words in done.one_line()


def test_no_qemu(hugepfn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_QEMU", "no-such-qemu")
    done = hugepfn("run", "fork")
    assert done.status == 2
    assert done.one_line().startswith("there is no no-such-qemu; install qemu-system-x86")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--qemu", "/bin/false"), "/bin/false is not QEMU: --version prints 'false (GNU"),
        (("--ram-dir", "/nonexistent"), "cannot put guest RAM into /nonexistent: no such folder; choose an existing"),
    ],
)
def test_an_invalid_program_or_folder_is_a_usage_error(hugepfn: Command, option: tuple[str, str], words: str) -> None:
    done = hugepfn("run", "fork", "--accel", "tcg", *option)
    assert done.status == 2
    assert words in done.one_line()


def test_no_room_for_ram(hugepfn: Command) -> None:
    done = hugepfn("run", "fork", "--accel", "tcg", "--ram-dir", "/sys")
    assert done.status == 3
    assert "no space for guest RAM: /sys has 0 MiB free, expected 1024 MiB" in done.one_line()


def test_no_apt(hugepfn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.host.process.find_program", _nothing)
    monkeypatch.setattr("harness.archive.apt.find_program", _nothing)
    for args in (["run", "fork", "--accel", "tcg", "--kernel", "debian:6.12"], ["kernels"]):
        done = hugepfn(*args)
        assert done.status == 3
        assert "no apt here" in done.err
        assert "Traceback" not in done.err


def test_the_levels_of_the_options_are_those_of_leaves() -> None:
    """harness/levels.py repeats them because harness.pagetable loads numpy, which is too slow for --help."""
    assert tuple(PAGE_SIZES) == LEAF_LABELS
    shifts = {"K": 10, "M": 20, "G": 30}
    for label, size in PAGE_SIZES.items():
        assert Level.from_label(label).size_bytes == int(size[:-1]) << shifts[size[-1]]
        assert level_label(size) == level_label(size.lower()) == label


@pytest.mark.parametrize(
    ("module", "lacking"),
    [
        (
            "harness.cli",
            [
                "harness.events",
                "harness.pagetable",
                "harness.verdict",
                "asyncio",
                "logging",
                "pytest",
                "rich",
                "tempfile",
            ],
        ),
        ("harness.campaign.session", ["numpy", "harness.kernel.build", "virtme.commands", "filelock", "rich.progress"]),
    ],
)
def test_a_command_starts_without_what_it_seldom_needs(module: str, lacking: list[str]) -> None:
    told = f"import sys, {module}; print([one for one in {lacking} if one in sys.modules])"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _nothing(name: str, *_: object) -> Path:
    raise MachineryError(f"no apt here, and no {name}")


# --- how errors end ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UsageError("words"), 2),
        (MachineryError("words"), 3),
        (BootError("words", exit_status=None, console_tail=""), 1),
        (GuestProgramError("words"), 1),
        (ClaimFailed("words"), 1),
    ],
)
def test_the_family_of_an_error_decides(
    hugepfn: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    _fail_with(error, monkeypatch)
    done = hugepfn("list")
    assert (done.status, done.one_line()) == (status, "words")


def test_ctrl_c(hugepfn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(KeyboardInterrupt(), monkeypatch)
    done = hugepfn("list")
    assert (done.status, done.err) == (130, "hugepfn: interrupted\n"), "click's empty line must not be printed"


def test_without_a_kept_machine_none_is_listed(hugepfn: Command) -> None:
    done = hugepfn("kept", "--rm", "one")
    assert (done.status, done.err) == (
        2,
        "hugepfn: there is no kept machine 'one'; none is kept; --keep-vm keeps one when a test fails\n",
    )


def test_a_line_of_a_table_does_not_end_in_blanks(hugepfn: Command) -> None:
    for name in ("fork-pud", "one"):
        cache.obtain("kept", name, lambda folder: (folder / "meta.json").touch())
    lines = [*hugepfn("kept").out.splitlines(), *hugepfn("cache").out.splitlines()]
    assert len(lines) > 4
    assert [line for line in lines if line.endswith(" ")] == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("typo"), "a bug of hugepfn: KeyError: 'typo' (test_cli.py:"),
        (EOFError(), "a bug of hugepfn: EOFError (test_cli.py:"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "a bug of hugepfn: BrokenPipeError: [Errno 32]"),
        (MemoryError(), "this host is out of memory; end other programs, or use fewer --workers"),
        (OSError(errno.EMFILE, "Too many open files"), "this host is at its limits: Too many open files"),
    ],
)
def test_an_unexpected_error_is_one_line_and_no_verdict(
    hugepfn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, words: str
) -> None:
    _fail_with(error, monkeypatch)
    done = hugepfn("list")
    line = done.one_line()
    assert (done.status, line.startswith(words)) == (3, True), line
    kept = tmp_path / "cache" / "traceback.txt"
    assert line.endswith(f"; its traceback is in {kept}")
    assert "test_cli.py" in kept.read_text()


def test_a_full_disk_is_no_bug(hugepfn: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_with(OSError(errno.ENOSPC, "No space left on device", "/x"), monkeypatch)
    done = hugepfn("list")
    assert (done.status, done.one_line()) == (3, "/x cannot be written: No space left on device; free some room")


def test_help_and_docs_list_every_exit_status(hugepfn: Command) -> None:
    said = {"hugepfn --help": hugepfn("--help").out}
    said |= {"docs/results.md": (ROOT / "docs" / "results.md").read_text()}
    for name, text in said.items():
        words = " ".join(text.replace("|", " ").split())
        assert [code for code in ExitCode if f"{code.value} {code.meaning}" not in words] == [], name


def _fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(scenarios, "scenario_lines", fail)


# --- a session -----------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """An available kernel. A machine fails to come up with the first error in this list, if there is one."""
    errors: list[BaseException] = []

    class NoMachine:
        config, emulator, runs = DEFAULT, None, ()

        def start(self) -> None:
            raise errors[0]

        def close(self) -> None:
            raise AssertionError

    monkeypatch.setattr(preparation, "resolve", lambda *_: IMAGE)
    monkeypatch.setattr(fixtures, "VM", lambda *_args, **_fields: NoMachine())
    return errors


BOOT_ERROR = BootError("debian:6.12 does not boot: panic", exit_status=None, console_tail="panic")
FORK = ("run", "fork", "--accel", "tcg", "--pytest=-p", "--pytest=no:hypothesispytest")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (BOOT_ERROR, 1, "fork pte: failed: debian:6.12 does not boot: panic"),
        (MachineryError("QEMU is gone"), 3, "fork pte: error: QEMU is gone"),
        (KeyError("typo"), 3, "fork pte: error: 'typo'"),
    ],
)
def test_a_machine_that_does_not_come_up(
    hugepfn: Command, machine: list[BaseException], error: BaseException, status: int, words: str
) -> None:
    machine.append(error)
    done = hugepfn(*FORK, "--level", "pte")
    assert done.status == status
    assert words in done.out
    assert "nothing ran" not in done.out
    assert done.err == ""


@pytest.mark.parametrize(("args", "status"), [([], 0), (["--strict"], 1)])
@pytest.mark.usefixtures("machine")
def test_an_unmet_precondition_is_a_skip(hugepfn: Command, tmp_path: Path, args: list[str], status: int) -> None:
    results = tmp_path / "results.json"
    done = hugepfn(*FORK, "--level", "pud", "--json", str(results), "--junit", str(tmp_path / "junit.xml"), *args)
    assert (done.status, done.err) == (status, "")
    assert "CONFIG_ARCH_SUPPORTS_PUD_PFNMAP is not set" in done.out
    (one,) = json.loads(results.read_text())["results"]
    assert (one["scenario"], one["level"], one["outcome"]) == ("fork", "pud", "failed" if status else "skipped")
    assert 'tests="1"' in (tmp_path / "junit.xml").read_text()


@pytest.mark.parametrize(("args", "status"), [([], 0), (["--strict"], 1)])
def test_a_scenario_that_skips_itself(
    hugepfn: Command, machine: list[BaseException], args: list[str], status: int
) -> None:
    machine.append(pytest.skip.Exception("no THP"))
    done = hugepfn(*FORK, "--level", "pte", *args)
    assert done.status == status
    assert "fork pte: skipped: no THP" in done.out


@pytest.mark.usefixtures("machine")
def test_a_selection_that_runs_nothing_is_no_pass(hugepfn: Command) -> None:
    done = hugepfn("run", "calibrate_thp", *FORK[2:], "--level", "pud")
    assert done.status == 2
    assert done.one_line() == "none of these tests has the level pud"


@pytest.mark.parametrize("option", ["--json", "--junit"])
@pytest.mark.usefixtures("machine")
def test_an_unwritable_results_file_is_refused_before_anything_runs(hugepfn: Command, option: str) -> None:
    done = hugepfn(*FORK, "--level", "pud", option, "/proc/results.json")
    assert (done.status, done.out) == (2, "")
    assert done.one_line().startswith(f"{option} /proc/results.json cannot be written: ")


@pytest.mark.parametrize("option", ["--json", "--junit"])
@pytest.mark.usefixtures("machine")
def test_a_directory_for_results_is_not_made_by_a_typing_error(hugepfn: Command, tmp_path: Path, option: str) -> None:
    folder = tmp_path / "reslts"
    done = hugepfn(*FORK, "--level", "pud", option, str(folder / "results.json"))
    assert done.status == 2
    said = f"{option} {folder}/results.json: there is no directory {folder}; create it, or name another file"
    assert done.one_line() == said
    assert not folder.exists()


@pytest.mark.usefixtures("machine")
def test_a_level_is_named_by_the_size_of_its_page_too(hugepfn: Command) -> None:
    done = hugepfn(*FORK, "--level", "1G")
    assert (done.status, done.err) == (0, "")
    assert "fork pud: skipped: " in done.out
    assert "pmd" not in done.out


@pytest.mark.usefixtures("machine")
def test_an_argument_that_pytest_does_not_know(hugepfn: Command) -> None:
    done = hugepfn(*FORK, "--pytest=--frobnicate")
    assert done.status == 2
    assert "unrecognized arguments: --frobnicate" in done.err
    assert "no scenario has this level" not in done.err


# --- doctor --------------------------------------------------------------------------------------


def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *names: str) -> None:
    """Simulate a Debian that has only these commands."""
    folder = tmp_path / "only"
    folder.mkdir()
    for name in names:
        (folder / name.replace("/", "_")).write_text("#!/bin/sh\n")
        (folder / name.replace("/", "_")).chmod(0o755)
    (tmp_path / "os-release").write_text("ID=debian\n")
    monkeypatch.setattr(packages, "_OS_RELEASE", (tmp_path / "os-release",))
    monkeypatch.setattr(packages, "_SBIN", str(folder))
    monkeypatch.setenv("PATH", str(folder))


def test_doctor_names_what_is_missing_and_how_to_install_it(
    hugepfn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, tmp_path, *(need.name for need in packages.needs() if need.name not in ("gcc", "busybox")))
    monkeypatch.setattr(doctor, "kvm_proof", lambda *_: SimpleNamespace(works=False, reason="there is no /dev/kvm"))
    done = hugepfn("doctor")
    assert done.status == 3
    shown = dict(line.split(": ", 1) for line in done.out.splitlines() if ": " in line)
    assert shown["missing gcc"] == "missing; it compiles the guest programs"
    assert shown["missing libc.a"] == "missing; it links guest programs statically"
    assert shown["note    busybox"] == "missing; it is the shell in the guest"
    assert shown["note    to build kernels"].startswith("missing: gcc (compiles kernels), gelf.h (objtool")
    assert shown["note    KVM"] == "TCG is used: there is no /dev/kvm"
    assert shown["ok      QEMU version"] == "QEMU emulator version 8.2.1 (fake)"
    assert shown["To fix this"].endswith(
        "apt-get install --no-install-recommends gcc libc6-dev busybox-static libelf-dev"
    )
    done = hugepfn("doctor", "--missing")
    assert (done.status, done.out) == (0, "gcc libc6-dev busybox-static libelf-dev\n")


def test_doctor_on_a_host_that_has_everything(
    hugepfn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, tmp_path, *(need.name for need in packages.needs()))
    monkeypatch.setattr(packages, "static_library", lambda name: f"/usr/lib/{name}")
    monkeypatch.setattr(doctor, "_RAM_MIB", 0)
    monkeypatch.setattr(tools, "has_header", lambda _name: True)
    monkeypatch.setattr(doctor, "kvm_proof", lambda *_: SimpleNamespace(works=True, reason=""))
    done = hugepfn("doctor")
    assert (done.status, done.err) == (0, "")
    assert "fix" not in done.out
    assert "missing" not in done.out


@pytest.mark.parametrize("there", [True, False])
def test_doctor_does_not_miss_a_qemu_that_is_fetched(
    hugepfn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    names = [need.name for need in packages.needs() if need.name != "qemu-system-x86_64"]
    only(monkeypatch, tmp_path, *names)
    monkeypatch.setenv("HUGEPFN_QEMU", "debian:11.1")

    def fetched(_asked: str | None = None) -> SimpleNamespace:
        if not there:
            raise UsageError("--qemu debian:11.1: the mirror has no such version")
        return SimpleNamespace(package="QEMU emulator version 11.1.0")

    monkeypatch.setattr(doctor, "find_qemu", fetched)
    monkeypatch.setattr(doctor, "kvm_proof", lambda *_: SimpleNamespace(works=True, reason=""))
    lines = hugepfn("doctor").out.splitlines()
    assert "ok      debian:11.1: fetched from the Debian mirror" in lines
    found = "ok      QEMU version: QEMU emulator version 11.1.0"
    assert (found if there else "missing QEMU version: --qemu debian:11.1: the mirror has no such version") in lines
    assert "qemu" not in hugepfn("doctor", "--missing").out


def test_doctor_does_not_interpret_markup(hugepfn: Command, tmp_path: Path) -> None:
    (tmp_path / "qemu").write_text("#!/bin/sh\necho '[/red] [bold]frob'\n")
    done = hugepfn("doctor")
    assert done.status == 3
    assert "is not QEMU: --version prints '[/red] [bold]frob" in done.out


# --- kept ----------------------------------------------------------------------------------------


def test_kept_machines_are_listed_and_deleted(
    hugepfn: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path))
    assert hugepfn("kept").out == "no kept machines\n"

    def old(folder: Path) -> None:
        (folder / "meta.json").write_text('{"spec": {}}')

    cache.obtain("kept", "fork-pud", old)
    assert "fork-pud" in hugepfn("kept").out
    assert "another version of hugepfn" in hugepfn("kept").out
    done = hugepfn("kept", "--rm", "fork-pmd")
    assert (done.status, "expected one of: fork-pud" in done.err) == (2, True)
    done = hugepfn("kept", "--rm", "fork-pud")
    assert (done.status, done.out) == (0, "removed the kept machine fork-pud (0 MiB)\n")
    assert hugepfn("kept").out == "no kept machines\n"


# --- help ----------------------------------------------------------------------------------------


def test_every_command_is_in_a_section_with_an_example(hugepfn: Command) -> None:
    done = hugepfn("--help")
    shown = [name for section in cli.SECTIONS for name in (command.name for command in section.commands)]
    assert sorted(filter(None, shown)) == sorted(name for name, one in cli.cli.commands.items() if not one.hidden)
    for section in cli.SECTIONS:
        assert f"{section.title}:\n" in done.out
        assert f"  Example: {section.example}\n" in done.out
        for command in section.commands:
            assert f"  {command.name} " in done.out
        words = section.example.removeprefix("hugepfn ").split()
        assert words[0] in [command.name for command in section.commands]


def test_the_options_of_the_machine_are_named_and_explained_on_demand(hugepfn: Command) -> None:
    short, long = " ".join(hugepfn("run", "--help").out.split()), hugepfn("run", "--help-machine")
    assert "explain the options of the machine: --modules, --qemu, --accel, --smp, " in short
    assert "number of vCPUs" not in short
    assert (long.status, long.err) == (0, "")
    assert "number of vCPUs" in long.out
    assert "--level" not in long.out
    assert "--accel" in hugepfn("selfcheck", "--help").out, "selfcheck shows its options of the machine"


# --- list ----------------------------------------------------------------------------------------


def listed(done: Done) -> list[str]:
    assert (done.status, done.err) == (0, "")
    return [line.split("  ")[0] for line in done.out.splitlines()[:-1][::3]]


def test_list_takes_a_filter(hugepfn: Command) -> None:
    everything = listed(hugepfn("list"))
    forks = listed(hugepfn("list", "fork"))
    assert "fork" in forks
    assert "race_fork" in forks
    assert forks == [name for name in everything if "fork" in name]
    assert listed(hugepfn("list", "fork_*")) == [name for name in everything if name.startswith("fork_")]
    assert listed(hugepfn("list", "mremap", "fork_*")) == [
        name for name in everything if name.startswith("fork_") or "mremap" in name
    ]
    one = hugepfn("list", "calibrate_thp", "--level", "2M")
    assert one.out.splitlines()[-1] == "1 scenario, 1 case"
    assert "fork" in listed(hugepfn("list", "--level", "1G"))
    assert "calibrate_thp" not in listed(hugepfn("list", "--level", "1G"))


def test_list_finds_what_a_kernel_function_decides(hugepfn: Command) -> None:
    named = listed(hugepfn("list", "--function", "copy_huge_pmd"))
    assert "fork" in named
    assert named == listed(hugepfn("list", "--function", "mm/huge_memory.c copy_huge_pmd()"))
    assert named == listed(hugepfn("list", "--function", "copy_*_pmd"))
    assert set(named) <= set(listed(hugepfn("list", "--function", "copy_huge_*")))
    assert set(named) < set(listed(hugepfn("list", "--function", "mm/huge_memory.c")))


def test_a_filter_without_a_match(hugepfn: Command) -> None:
    done = hugepfn("list", "frok")
    assert (done.status, done.one_line().startswith("no scenario matches; `hugepfn list` shows all")) == (2, True)


# --- sessions ------------------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Start simulated sessions, which have only a name."""
    monkeypatch.setenv("HUGEPFN_RUNTIME_DIR", str(tmp_path / "rt"))
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(SessionClient, "call", lambda self, verb, **_: asked.append((self.about.name, verb)))
    with contextlib.ExitStack() as stack:

        def start(name: str) -> None:
            folder = stack.enter_context(registry.claim(name))
            registry.publish(folder, registry.About(name, os.getpid(), "debian:6.12", "6.12.1", 0.0))

        yield start


SESSION_COMMANDS = {
    "exec": ("true",),
    "ssh": ("true",),
    "walk": ("1", "0"),
    "maps": ("1",),
    "rerun": ("fork",),
    **dict.fromkeys(("shell", "gdb", "log", "pause", "resume", "stop"), ()),
}


@pytest.mark.parametrize("command", SESSION_COMMANDS)
def test_a_session_is_named_in_one_way(
    hugepfn: Command, running: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("harness.guest.terminal.require_terminal", lambda: None)
    running("one")
    done = hugepfn(command, "-s", "other", *SESSION_COMMANDS[command])
    line = "there is no session 'other'; expected one of: one"
    assert (done.status, done.one_line()) == (2, line)
    running("two")
    done = hugepfn(command, *SESSION_COMMANDS[command])
    assert (done.status, done.one_line()) == (2, "several sessions are running: one, two; name one with -s")


@pytest.mark.parametrize("command", ["exec", "shell"])
def test_a_new_machine_is_used_if_described_or_without_a_session(
    hugepfn: Command, running: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("harness.guest.terminal.require_terminal", lambda: None)
    meant: list[str] = []

    def stop(client: SessionClient, *_: object) -> None:
        raise MachineryError(f"the session {client.about.name} is meant")

    def new(*_: object, **__: object) -> None:
        raise MachineryError("a new machine is meant")

    monkeypatch.setattr(SessionClient, "exec", stop)
    monkeypatch.setattr(SessionClient, "shell", stop)
    monkeypatch.setattr("harness.commands.live.start_machine", new)
    monkeypatch.setattr("harness.commands.live._fresh", new)
    words = SESSION_COMMANDS[command]
    done = hugepfn(command, *words)
    said = "no session is running; starting a machine for this command only\nhugepfn: a new machine is meant\n"
    assert done.err == f"hugepfn: {said}"
    running("one")
    meant += [hugepfn(command, *words).err.splitlines()[-1], hugepfn(command, "--smp", "2", *words).one_line()]
    assert meant == ["hugepfn: the session one is meant", "a new machine is meant"]
    done = hugepfn(command, "-s", "one", "--no-clone", *words)
    line = "--session one is a machine that runs, and --clone describes a new one; give either"
    assert (done.status, done.one_line()) == (2, line)


def test_stop_says_what_it_did(
    hugepfn: Command, running: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(client: SessionClient) -> None:
        if client.about.name == "two":
            raise MachineryError("the session two (pid 7) does not end, not even by SIGKILL")

    monkeypatch.setattr(SessionClient, "stop", end)
    assert hugepfn("stop", "--all").out == "no sessions\n"
    for name in ("one", "two", "three"):
        running(name)
    assert hugepfn("stop", "-s", "one", "-s", "three").out == "stopped the session one\nstopped the session three\n"
    done = hugepfn("stop", "--all")
    assert (done.status, done.out.count("stopped the session")) == (3, 2)
    assert done.one_line() == "the session two (pid 7) does not end, not even by SIGKILL"
