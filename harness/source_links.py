"""Links to the kernel functions of claims: the line in the tree that was built, and an address on a web site.

Nothing is fetched. A line is known only for a kernel that was built here from exactly this tree.
"""

from __future__ import annotations

import contextlib
import functools
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from harness.errors import HugepfnError, UsageError
from harness.guest.compiler import guest_tests_dir
from harness.kernel.build import BuiltSource
from harness.kernel.definitions import definition_line
from harness.kernel_functions import KernelFunction, every_function
from harness.selection.tests import facts_of
from harness.verdict.seen import version_key

DEFAULT_SITE = "https://elixir.bootlin.com/linux"
_FIELDS = ("version", "file", "line", "function")
_NAMED = re.compile(r"(?:(?P<file>[\w./+-]+\.[chS]) )?(?P<name>\w+)\(\)")
_EXACT = re.compile(r"debian:(\d+\.\d+\.\d+)(?![\d.])")
_RELEASE = re.compile(r"(\d+\.\d+)(?:\.(\d+))?(?:-(rc\d+))?")


@dataclass(frozen=True)
class SourceSite:
    """A web site with the kernel's source, or an editor with an address scheme.

    ``url`` is the base of an Elixir site, whose search for an identifier is then used, or an address with fields:
    ``{version}`` (v6.12.118), ``{file}``, ``{line}`` and ``{function}``.

    :raises UsageError: url is not an address, or has other fields.
    """

    url: str = DEFAULT_SITE

    def __post_init__(self) -> None:
        try:
            fields = [name for _, name, _, _ in string.Formatter().parse(self.url) if name is not None]
        except ValueError:
            fields = ["{"]
        wrong = [name for name in fields if name not in _FIELDS]
        if wrong or not re.match(r"[a-z][a-z0-9+.-]*://", self.url):
            raise UsageError(
                f"--source-url {self.url!r}; expected an address such as {DEFAULT_SITE}, or one with the fields "
                + ", ".join(f"{{{name}}}" for name in _FIELDS)
            )

    def address(self, version: str, file: str, line: int | None, function: str) -> str:
        """Return the address of a function; "" if a field of the address is not known for this kernel."""
        if "{" not in self.url:
            return f"{self.url.rstrip('/')}/{version or 'latest'}/A/ident/{quote(function)}"
        known = {"version": version, "file": quote(file), "line": line or "", "function": quote(function)}
        wanted = [name for _, name, _, _ in string.Formatter().parse(self.url) if name]
        return self.url.format(**known) if all(known[name] for name in wanted) else ""


ELIXIR = SourceSite()


class KernelSource:
    """The source of one kernel, if it is on this host.

    :param kernel: what a run's context says about the kernel: ``spec``, ``release``, ``tree``.
    """

    def __init__(self, kernel: dict[str, Any]) -> None:
        self._spec, self._release = str(kernel.get("spec") or ""), str(kernel.get("release") or "")
        self._tree = kernel.get("tree")
        facts = facts_of(guest_tests_dir())
        exact = _EXACT.match(self._spec)
        self._version = exact[1] if exact else facts.version_of(self._release)

    @property
    def tag(self) -> str:
        """The tag of its version in git, "v6.12.118" or "v7.3-rc2"; "" if it is not known."""
        found = _RELEASE.match(self._version)
        if found is None:
            return ""
        series, patch, candidate = found.groups()
        return f"v{series}" + (f"-{candidate}" if candidate else f".{patch}" if patch and patch != "0" else "")

    def locate(self, said: str, site: SourceSite) -> tuple[str, str] | None:
        """Return the words for the function that decides a claim, and its address; None if no function is named."""
        named = _NAMED.fullmatch(said)
        if named is None:
            return None
        known = _by_words().get(said) or KernelFunction(named["file"] or "", named["name"])
        candidates = sorted(_with_elsewhere(known), key=lambda one: not self._may_have(one))
        found = [(one, line) for one in candidates if (line := self._line(one)) is not None]
        function, line = found[0] if found else (candidates[0], None)
        shown = f"{function.file}:{line} {function.name}()" if line else str(function) if function.file else said
        return shown, site.address(self.tag, function.file, line, function.name)

    def _may_have(self, function: KernelFunction) -> bool:
        if not self.tag:
            return True
        series = version_key(self._version)[:2]
        since, until = (version_key(text)[:2] if text else series for text in (function.since, function.until))
        return since <= series <= until

    def _line(self, function: KernelFunction) -> int | None:
        return definition_line(self._text(function.file), function.name) if function.file else None

    @functools.cache  # noqa: B019 - it lives as long as one page is written
    def _text(self, file: str) -> str:
        with contextlib.suppress(HugepfnError):  # a page without line numbers is better than none
            if self._tree:
                return BuiltSource.parse(self._spec).recipe.origin.slot.text(self._tree, file)
        return ""


@functools.cache
def _by_words() -> dict[str, KernelFunction]:
    return {str(one): one for one in every_function()}


def _with_elsewhere(function: KernelFunction) -> Iterator[KernelFunction]:
    yield function
    if function.elsewhere is not None:
        yield function.elsewhere


def functions_of(kernel: dict[str, Any], said: Iterable[str], site: SourceSite) -> dict[str, tuple[str, str]]:
    """Return each function that claims name, with its words and its address."""
    source = KernelSource(kernel)
    found = {words: source.locate(words, site) for words in sorted(set(said))}
    return {words: located for words, located in found.items() if located is not None}
