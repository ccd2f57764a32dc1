"""The machine that you want, as one value, and every way to describe it.

The metadata of each field of :class:`MachineConfig` gives the options of the commands (harness/commands/options.py),
the options and ini settings of pytest (harness/plugin/options.py), the environment variables, the keys of
``[tool.hugepfn]`` in a pyproject.toml, the arguments of a child process, and the table in docs/configuration.md, which
``python -m harness.config`` prints.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from harness.errors import UsageError

_WISHES = ("smp", "append", "clone", "device", "guest", "kvm", "load", "memory_mib")  # see with_wishes()
_YES, _NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Option(NamedTuple):
    """How one field is written as text: its metadata, under ``"option"``."""

    help: str
    metavar: str
    valid: str  # the valid values, for error messages
    parse: Callable[[str], Any]  # raises ValueError
    is_valid: Callable[[Any], bool]
    name: str = ""  # if it is not the field's own
    default: str = ""  # in words, if the default is not a value

    @property
    def is_flag(self) -> bool:
        """Whether it is an option without a value: --name and --no-name."""
        return self.parse is _flag


def _flag(text: str) -> bool:
    if text.lower() not in (*_YES, *_NO):
        raise ValueError
    return text.lower() in _YES


def _choice(known: tuple[str, ...], what: str) -> dict[str, Option]:
    return {"option": Option(what, f"[{'|'.join(known)}]", ", ".join(known), str, lambda value: value in known)}


def _number(least: int, most: int, what: str, name: str = "", unit: str = "") -> dict[str, Option]:
    def is_valid(value: Any) -> bool:
        return type(value) is int and least <= value <= most

    return {"option": Option(what, "N", f"{least} to {most}{unit}", int, is_valid, name)}


def _seconds(what: str, name: str, default: str) -> dict[str, Option]:
    def is_valid(value: Any) -> bool:
        return type(value) in (int, float) and 0 < value < math.inf

    return {"option": Option(what, "S", "seconds, more than 0", float, is_valid, name, default)}


def _text(metavar: str, what: str, default: str = "") -> dict[str, Option]:
    return {"option": Option(what, metavar, "a text", str, lambda value: isinstance(value, str), "", default)}


def _folder(what: str, default: str) -> dict[str, Option]:
    return {"option": Option(what, "DIR", "a path", Path, lambda value: isinstance(value, Path), "", default)}


def _switch(what: str, name: str = "") -> dict[str, Option]:
    return {"option": Option(what, "", "true, false", _flag, lambda value: isinstance(value, bool), name)}


def _words(what: str) -> dict[str, Option]:
    def is_valid(value: Any) -> bool:
        """The kernel reads an unpaired quotation mark to the end of its command line (lib/cmdline.c next_arg())."""
        texts = isinstance(value, tuple) and all(isinstance(word, str) for word in value)
        return texts and " ".join(value).count('"') % 2 == 0

    return {
        "option": Option(
            what,
            "WORDS",
            "words, with quotation marks in pairs",
            lambda text: tuple(text.split()),
            is_valid,
            default="none",
        )
    }


@dataclass(frozen=True)
class MachineConfig:
    """The requested kernel and machine, before it is known which accelerator runs it.

    :raises UsageError: a value is not valid; the message has the valid ones.
    """

    kernel: str | None = field(
        default=None,
        metadata=_text(
            "SPEC",
            "debian[:6.12[@SUITE]]; host, the kernel of this host; a bzImage, a vmlinux, or a folder: a build tree, "
            "or one with vmlinuz, config and lib/modules; or to build: tree:PATH[@REV][+PATCH...], "
            "debsrc:6.12[+PATCH...]",
            "debian (the newest); host if there is no Debian mirror",
        ),
    )
    modules: Path | None = field(default=None, metadata=_folder("the modules of a kernel given by path", "none"))
    qemu: str | None = field(
        default=None,
        metadata=_text(
            "QEMU", "the QEMU to use: a path, or debian:11.1[@SUITE] from the mirror", "qemu-system-x86_64 in PATH"
        ),
    )
    accel: str = field(
        default="auto",
        metadata=_choice(("auto", "kvm", "tcg"), "what runs the guest; auto: KVM if it works here, otherwise TCG"),
    )
    smp: int = field(default=1, metadata=_number(1, 16, "number of vCPUs, 1 to 16"))
    memory_mib: int = field(
        default=1024, metadata=_number(256, 65536, "guest RAM in MiB, 256 to 65536", "memory", " MiB")
    )
    cpu: str = field(default="max", metadata=_text("MODEL", "QEMU's CPU model"))
    append: tuple[str, ...] = field(
        default=(), metadata=_words("words for the kernel command line: pti=on, no5lvl, ...")
    )
    device: str = field(
        default="pci-testdev",
        metadata=_choice(
            ("pci-testdev", "ivshmem-plain", "nvme"),  # as harness.qemu.spec.Device, whose import slows --help down
            "the device under test; ivshmem-plain has RAM behind its BAR; nvme has reset and power states, but its "
            "machine cannot be cloned and boots each time",
        ),
    )
    ram_dir: Path | None = field(default=None, metadata=_folder("the folder for guest RAM", "/dev/shm if it has space"))
    boot_timeout_s: float | None = field(
        default=None,
        metadata=_seconds("seconds that the kernel may take to boot", "boot-timeout", "60 under KVM, 180 under TCG"),
    )
    guest: str = field(
        default="initramfs",
        metadata=_choice(("initramfs", "host"), "the guest's root: our initramfs, or this host's root, copy on write"),
    )
    pvh: bool = field(
        default=False,
        metadata=_switch("start the vmlinux inside a bzImage: faster under TCG, but no KASLR and only four levels"),
    )
    kvm: bool = field(
        default=False,
        metadata=_switch(
            "KVM in the guest: the kernel's kvm modules, and under TCG a CPU with AMD's SVM (a model other than max "
            "has to have it: --cpu MODEL,svm=on)",
            "nested",
        ),
    )
    load: tuple[str, ...] = field(
        default=(),
        metadata=_words("further modules of the kernel for the guest, loaded at boot: nd_e820, dax_pmem, ..."),
    )
    clone: bool = field(default=True, metadata=_switch("clone a booted machine for every test instead of booting one"))
    pristine: bool = field(default=False, metadata=_switch("a clone for each case, even where it leaves no trace"))
    evidence: bool = field(
        default=True,
        metadata=_switch("keep a folder in the cache for every test that fails: log, command lines, results, cause"),
    )

    def __post_init__(self) -> None:
        if isinstance(self.append, list):
            object.__setattr__(self, "append", tuple(self.append))
        for one in fields(self):
            _check(one, getattr(self, one.name), one.name)

    @classmethod
    def read(
        cls,
        given: Mapping[str, str | bool | None],
        prefix: str = "--",
        ini: Callable[[str], str | None] = lambda _name: None,
    ) -> Self:
        """Return the requested machine from all sources: options, environment, ini settings, a pyproject.toml.

        :param given: the options by field; None for one that was not given. Only these fields are read from elsewhere.
        :param prefix: of the options, for messages; see :meth:`argv`.
        :param ini: returns the value that pytest's ini file has under a name; None or "" for none.
        :raises UsageError: one of the sources has an invalid value; the message says which.
        """
        values: dict[str, Any] = {}
        source: dict[str, int] = {}  # of each value; a lower number takes precedence
        table, path = _pyproject(Path.cwd())
        for one in (one for one in fields(cls) if one.name in given):
            name, variable = name_of(one), variable_of(one)
            if (said := given[one.name]) is not None:
                values[one.name], source[one.name] = _value(one, said, prefix + name), 1
            elif said := os.environ.get(variable):
                values[one.name], source[one.name] = _value(one, said, variable), 2
            elif said := ini(variable.lower()):
                values[one.name], source[one.name] = _value(one, said, f"ini setting {variable.lower()}"), 3
            elif name in table:
                values[one.name] = _from_folder(_value(one, table[name], f"{path}: {name}"), path.parent)
                source[one.name] = 4
        if source.get("modules", 0) > source.get("kernel", 5):
            del values["modules"]  # they belong to the kernel named there, and another one was requested
        if "kernel" in given and values.get("kernel") is None:
            from harness.kernel import default_kernel  # this import slows --help down

            values["kernel"] = default_kernel().spec
        return cls(**values)

    def argv(self, prefix: str = "--") -> list[str]:
        """Return everything as options for a child, including defaults, because a child reads its own environment.

        :param prefix: ``--`` for a command's options, ``--hugepfn-`` for pytest's.
        """
        words = []
        for one in fields(self):
            value, name = getattr(self, one.name), name_of(one)
            if option_of(one).is_flag:
                words.append(f"{prefix}{'' if value else 'no-'}{name}")
            else:
                text = " ".join(value) if isinstance(value, tuple) else "" if value is None else str(value)
                words.append(f"{prefix}{name}={text}")
        return words

    def with_wishes(self, wishes: Mapping[str, Any]) -> Self:
        """Return this machine with at least what a test needs.

        :param wishes: fields by name; ``smp`` and ``memory_mib`` at least, ``append`` and ``load`` in addition.
        :raises UsageError: a wish has another name.
        """
        if unknown := sorted(wishes.keys() - set(_WISHES)):
            raise UsageError(f"machine({unknown[0]}=...): expected one of: {', '.join(_WISHES)}")
        return replace(
            self,
            smp=max(self.smp, wishes.get("smp", 1)),
            memory_mib=max(self.memory_mib, wishes.get("memory_mib", 0)),
            load=(*self.load, *wishes.get("load", ())),
            append=(*self.append, *wishes.get("append", ())),
            clone=self.clone and wishes.get("clone", True),
            device=wishes.get("device", self.device),
            guest=wishes.get("guest", self.guest),
            kvm=self.kvm or wishes.get("kvm", False),
        )


def option_of(one: Field[Any]) -> Option:
    """Return how a field is written as text."""
    option: Option = one.metadata["option"]
    return option


def name_of(one: Field[Any]) -> str:
    """Return the name of a field in options and in TOML: "boot-timeout"."""
    return option_of(one).name or one.name.replace("_", "-")


def variable_of(one: Field[Any]) -> str:
    """Return the environment variable of a field: "HUGEPFN_BOOT_TIMEOUT"; in lower case, its ini setting."""
    return f"HUGEPFN_{name_of(one).replace('-', '_').upper()}"


def default_of(one: Field[Any]) -> str:
    """Return the default of a field, in words."""
    value = one.default
    return option_of(one).default or (str(value).lower() if isinstance(value, bool) else str(value))


def table() -> Iterator[str]:
    """Yield the lines of the table in docs/configuration.md."""
    yield "| option | environment | meaning | default |"
    yield "|---|---|---|---|"
    for one in fields(MachineConfig):
        option, name = option_of(one), name_of(one)
        shown = f"`--{name}`, `--no-{name}`" if option.is_flag else f"`--{name} {option.metavar}`".replace("|", "\\|")
        yield f"| {shown} | `{variable_of(one)}` | {option.help} | {default_of(one)} |"


def _value(one: Field[Any], said: object, where: str) -> Any:
    """Return the value of a field from its text; the default if the text is empty.

    :param said: a text, or a value of TOML.
    :param where: where it comes from, for messages.
    :raises UsageError: it is not valid.
    """
    match said:
        case bool():
            text = str(said).lower()
        case list():
            text = " ".join(map(str, said))
        case _:
            text = str(said)
    if not text:
        return one.default
    try:
        value = option_of(one).parse(text)
    except ValueError:
        value = text
    return _check(one, value, where)


def _check(one: Field[Any], value: Any, where: str) -> Any:
    if value is not one.default and not option_of(one).is_valid(value):
        raise UsageError(f"{where} {value!r}; valid values: {option_of(one).valid}")
    return value


def _pyproject(start: Path) -> tuple[Mapping[str, Any], Path]:
    """Return the table ``[tool.hugepfn]`` of the nearest pyproject.toml that has one, from a folder upwards; its path.

    :raises UsageError: it is not TOML, or has a key that is not an option.
    """
    for path in (folder / "pyproject.toml" for folder in (start, *start.parents)):
        try:
            text = path.read_text()
        except (OSError, ValueError):
            continue
        if "tool.hugepfn" not in text:
            continue
        import tomllib  # it is rarely needed

        try:
            found = tomllib.loads(text).get("tool", {}).get("hugepfn")
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{path} is not valid TOML: {error}") from error
        if found is None:
            continue
        names = [name_of(one) for one in fields(MachineConfig)]
        for unknown in (name for name in found if name not in names):
            raise UsageError(
                f"{path}: [tool.hugepfn] has an unknown key {unknown!r}; expected one of: {', '.join(names)}"
            )
        return found, path
    return {}, start


def _from_folder(value: Any, folder: Path) -> Any:
    """Return a value of a pyproject.toml; a path is relative to its folder."""
    if isinstance(value, Path):
        return folder / value.expanduser()
    return str(folder / value) if isinstance(value, str) and value.startswith(("./", "../")) else value


DEFAULT = MachineConfig()

if __name__ == "__main__":
    print("\n".join(table()))
