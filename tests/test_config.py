"""Tests for the configuration and its six sources: each source alone, their precedence, and invalid values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import cli
from harness.commands.options import config_options
from harness.config import DEFAULT, MachineConfig, name_of, option_of, table, variable_of
from harness.errors import UsageError
from harness.qemu.spec import Device

ROOT = Path(__file__).resolve().parents[1]
ALL = [one.name for one in fields(MachineConfig)]
#: Between our own processes, and between host and guest.
INTERNAL = {"HUGEPFN_LOG", "HUGEPFN_EVENTS_FD", "HUGEPFN_ONE_STREAM", "HUGEPFN_PROCESS_NAME"}
NOTHING: Mapping[str, str | bool | None] = dict.fromkeys(ALL)


@pytest.fixture(autouse=True)
def _nobody_has_said_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in fields(MachineConfig):
        monkeypatch.delenv(variable_of(one), raising=False)
    monkeypatch.chdir(tmp_path)


def read(**said: str | bool) -> MachineConfig:
    return MachineConfig.read({**NOTHING, "kernel": "debian", **said})


# --- valid values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("accel", "xen", "auto, kvm, tcg"),
        ("guest", "debian", "initramfs, host"),
        ("device", "e1000", "pci-testdev, ivshmem-plain, nvme"),
        *(("smp", value, "1 to 16") for value in (0, 17, -1, "2", True, 1.5)),
        *(("memory_mib", value, "256 to 65536 MiB") for value in (255, 65537, 0)),
        *(("boot_timeout_s", value, "seconds, more than 0") for value in (0, -1, float("nan"), float("inf"))),
        ("clone", 1, "true, false"),
        *(("append", value, "words, with quotation marks in pairs") for value in ("pti=on", ('foo"bar',))),
        ("ram_dir", "/ram", "a path"),
        ("cpu", None, "a text"),
    ],
)
def test_an_invalid_value_gets_a_list_of_valid_ones(name: str, value: object, valid: str) -> None:
    with pytest.raises(UsageError) as error:
        replace(DEFAULT, **{name: value})  # type: ignore[arg-type]
    assert str(error.value) == f"{name} {value!r}; valid values: {valid}"


def test_words_may_be_given_as_a_list() -> None:
    config = MachineConfig(append=["pti=on", "no5lvl"])  # type: ignore[arg-type]
    assert config.append == ("pti=on", "no5lvl")
    assert hash(config) == hash(MachineConfig(append=("pti=on", "no5lvl")))


def test_every_device_can_be_requested() -> None:
    (device,) = (one for one in fields(MachineConfig) if one.name == "device")
    assert option_of(device).valid == ", ".join(one.value for one in Device)
    assert device.default == Device.TESTDEV.value


# --- to a child and back -------------------------------------------------------------------------

#: Words that a command line and a kernel's command line can both carry.
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters='"'), min_size=1)
CONFIGS = st.builds(
    MachineConfig,
    kernel=WORDS,
    modules=st.none() | WORDS.map(Path),
    qemu=st.none() | WORDS,
    accel=st.sampled_from(["auto", "kvm", "tcg"]),
    smp=st.integers(1, 16),
    memory_mib=st.integers(256, 65536),
    cpu=WORDS,
    append=st.lists(WORDS).map(tuple),
    device=st.sampled_from([one.value for one in Device]),
    ram_dir=st.none() | WORDS.map(Path),
    boot_timeout_s=st.none() | st.floats(0.001, 1e6),
    guest=st.sampled_from(["initramfs", "host"]),
    pvh=st.booleans(),
    kvm=st.booleans(),
    load=st.lists(WORDS).map(tuple),
    clone=st.booleans(),
    pristine=st.booleans(),
    evidence=st.booleans(),
)


@click.command()
@config_options()
def child(config: MachineConfig) -> None:
    raise Came(config)


class Came(Exception):
    def __init__(self, config: MachineConfig) -> None:
        self.config = config


@given(CONFIGS)
def test_a_child_gets_the_same_configuration(config: MachineConfig) -> None:
    with pytest.raises(Came) as came:
        child.main(config.argv(), standalone_mode=False)
    assert came.value.config == config


def test_a_child_ignores_the_other_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in fields(MachineConfig):
        monkeypatch.setenv(variable_of(one), "no value at all")
    with pytest.raises(Came) as came:
        child.main(replace(DEFAULT, kernel="host").argv(), standalone_mode=False)
    assert came.value.config == replace(DEFAULT, kernel="host")


# --- every source, and their order ---------------------------------------------------------------

SAID: Mapping[str, tuple[str, Any]] = {
    "kernel": ("host", "host"),
    "modules": ("/m", Path("/m")),
    "qemu": ("debian:11.1", "debian:11.1"),
    "accel": ("tcg", "tcg"),
    "smp": ("4", 4),
    "memory_mib": ("512", 512),
    "cpu": ("max,cx16=on", "max,cx16=on"),
    "append": ("pti=on  no5lvl", ("pti=on", "no5lvl")),
    "device": ("nvme", "nvme"),
    "ram_dir": ("/ram", Path("/ram")),
    "boot_timeout_s": ("7.5", 7.5),
    "guest": ("host", "host"),
    "pvh": ("yes", True),
    "kvm": ("on", True),
    "load": ("nd_e820 dax_pmem", ("nd_e820", "dax_pmem")),
    "clone": ("0", False),
    "pristine": ("1", True),
    "evidence": ("off", False),
}


@pytest.mark.parametrize("source", ["environment", "ini", "pyproject"])
def test_every_source_can_set_every_field(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_field = {one.name: one for one in fields(MachineConfig)}
    assert SAID.keys() == by_field.keys()
    ini: dict[str, str] = {}
    lines = ["[tool.hugepfn]"]
    for name, (text, _) in SAID.items():
        variable = variable_of(by_field[name])
        lines.append(f'{name_of(by_field[name])} = "{text}"')
        ini[variable.lower()] = text
        if source == "environment":
            monkeypatch.setenv(variable, text)
    if source == "pyproject":
        (tmp_path / "pyproject.toml").write_text("\n".join(lines))
    config = MachineConfig.read(NOTHING, ini=ini.get if source == "ini" else lambda _name: None)
    assert config == MachineConfig(**{name: value for name, (_, value) in SAID.items()})


def test_the_order_of_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.hugepfn]\nsmp = 5\n")
    ini: dict[str, str] = {}

    def found(option: str | None) -> int:
        return MachineConfig.read({"smp": option}, ini=ini.get).smp

    assert found(None) == 5
    ini["hugepfn_smp"] = "4"
    assert found(None) == 4
    monkeypatch.setenv("HUGEPFN_SMP", "3")
    assert found(None) == 3
    assert found("2") == 2
    assert found("") == 1, "an empty option means the default, whatever the other sources have"
    monkeypatch.setenv("HUGEPFN_SMP", "")
    assert found(None) == 4, "an empty variable counts as not set"


def test_toml_values_and_paths_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[tool.hugepfn]\nkernel = "./bzImage"\nmodules = "root"\nsmp = 2\nappend = ["a", "b"]\nclone = false\n'
    (tmp_path / "pyproject.toml").write_text(text + "boot-timeout = 90\nram-dir = '/ram'\n")
    inner = tmp_path / "a/b"
    inner.mkdir(parents=True)
    (tmp_path / "a/pyproject.toml").write_text("[project]\nname = 'x'\n")
    monkeypatch.chdir(inner)
    assert MachineConfig.read(NOTHING) == MachineConfig(
        kernel=str(tmp_path / "bzImage"),
        modules=tmp_path / "root",
        smp=2,
        append=("a", "b"),
        clone=False,
        boot_timeout_s=90.0,
        ram_dir=Path("/ram"),
    )


def test_modules_belong_to_the_kernel_that_is_named_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_MODULES", "/k/modules")
    monkeypatch.setenv("HUGEPFN_KERNEL", "/k/bzImage")
    assert MachineConfig.read({"kernel": None, "modules": None}).modules == Path("/k/modules")
    assert MachineConfig.read({"kernel": "debian:6.12", "modules": None}).modules is None
    assert MachineConfig.read({"kernel": "./b", "modules": "/b/modules"}).modules == Path("/b/modules")


def test_a_command_reads_only_the_fields_that_it_offers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_SMP", "4")
    monkeypatch.setenv("HUGEPFN_MEMORY", "much")
    assert MachineConfig.read({"smp": None}) == MachineConfig(smp=4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.hugepfn]\nsmp = 17", "pyproject.toml: smp 17; valid values: 1 to 16"),
        ("[tool.hugepfn]\nclone = 'perhaps'", "pyproject.toml: clone 'perhaps'; valid values: true, false"),
        (
            "[tool.hugepfn]\nvcpus = 2",
            "pyproject.toml: [tool.hugepfn] has an unknown key 'vcpus'; expected one of: kernel, modules, qemu,",
        ),
        ("[tool.hugepfn\n", "pyproject.toml is not valid TOML: Expected ']'"),
    ],
)
def test_an_invalid_pyproject_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(UsageError) as error:
        MachineConfig.read(NOTHING)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[tool.hugepfn-other]\nx = 1", "not toml at all", "# tool.hugepfn\n[project]\n"])
def test_a_pyproject_without_our_table_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert read() == replace(DEFAULT, kernel="debian")


def test_the_wrong_source_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^--smp 17; valid"):
        read(smp="17")
    with pytest.raises(UsageError, match=r"^ini setting hugepfn_smp 'x'; valid"):
        MachineConfig.read({"smp": None}, ini={"hugepfn_smp": "x"}.get)
    monkeypatch.setenv("HUGEPFN_SMP", "many")
    with pytest.raises(UsageError, match=r"^HUGEPFN_SMP 'many'; valid values: 1 to 16$"):
        read()


# --- the commands and the document ---------------------------------------------------------------


def test_help_shows_every_field_with_its_default() -> None:
    short, text = (" ".join(CliRunner().invoke(child, [one]).output.split()) for one in ("--help", "--help-machine"))
    for one in fields(MachineConfig):
        assert f"--{name_of(one)}" in short.replace("- ", "-"), (
            "the option is not in the help text, even if broken at a hyphen"
        )
        assert f"--{name_of(one)}" in text or one.name == "kernel"
    assert "--pvh / --no-pvh" in text
    assert "--accel [auto|kvm|tcg]" in text
    assert "number of vCPUs, 1 to 16 [default: 1]" in text


def test_the_document_has_the_table() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    shown = text.partition("<!-- config:begin -->\n")[2].partition("<!-- config:end -->")[0]
    assert shown == "".join(f"{line}\n" for line in table()), (
        "the table is out of date: print it with `python -m harness.config`"
    )


def test_the_document_has_every_variable() -> None:
    """The variables of the table are generated. Any other variable that the sources read is documented by hand."""
    text = (ROOT / "docs" / "configuration.md").read_text()
    sources = [path.read_text() for path in (ROOT / "harness").rglob("*.py")]
    named = {name for source in sources for name in re.findall(r'"(HUGEPFN_[A-Z_]+)"', source)}
    assert {name for name in named - INTERNAL if f"`{name}`" not in text} == set()


@pytest.mark.parametrize(("shell", "word"), [("bash", "COMPREPLY"), ("zsh", "compdef"), ("fish", "complete")])
def test_a_shell_gets_its_completion(shell: str, word: str) -> None:
    done = CliRunner().invoke(cli, [], prog_name="hugepfn", env={"_HUGEPFN_COMPLETE": f"{shell}_source"})
    assert word in done.output
    assert f"_HUGEPFN_COMPLETE={shell}_source" in (ROOT / "docs" / "configuration.md").read_text()
    words = {"COMP_WORDS": "hugepfn run --ke", "COMP_CWORD": "2" if shell != "fish" else "--ke"}
    done = CliRunner().invoke(cli, [], prog_name="hugepfn", env={"_HUGEPFN_COMPLETE": f"{shell}_complete", **words})
    assert "--kernel" in done.output
