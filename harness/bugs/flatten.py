"""Makes one C file of a guest program: its own text, and of the guest library what it uses. Pure.

The library is cut into definitions, which stand between empty lines, as the kernel's coding style has it. A definition
of alone.c stands in for the one of the same name in the library. Each comes before the first that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

_NOT_CODE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"', re.DOTALL)
_INCLUDE = re.compile(r"^#include ([<\"][^\n]*[>\"])\n", re.MULTILINE)
_FUNCTION = re.compile(r"^(?!#|struct \w+ \{)[\w*][^;={}]*?\b(\w+)\([^;={}]*\)\n\{", re.MULTILINE)
_TYPE = re.compile(r"^(?:static )?(?:struct|enum|union) (\w+) \{", re.MULTILINE)
_MACRO = re.compile(r"^#define (\w+)", re.MULTILINE)
_ENUMERATORS = re.compile(r"^enum(?: \w+)? \{(.*?)\}", re.MULTILINE | re.DOTALL)
#: Variables: `static int a, *b;`, `static const char *const names[] = {`, and what follows a struct: `} vms[VMS];`.
_VARIABLE = re.compile(
    r"^(?:static|extern) (?!.*\()[\w *]*?[ *](\w+(?:, \*?\w+)*)(?=[;\[]| =)|^\} \*?(\w+)", re.MULTILINE
)
#: Between two variables that stand together: one may be used without the other.
_VARIABLES_ALONE = re.compile(r"(?<=;)\n(?=static [^\n({]*;(?:\n|$))")
_COMMENT_OF_FILE = re.compile(r"\A(?:// SPDX[^\n]*\n)?(?:/\*.*?\*/\n)+", re.DOTALL)

#: alone.c stands in for a part of this file of the library, and uses the rest.
_PROCESSES = "checkpoint.c"


@dataclass(frozen=True)
class Piece:
    """A piece of C between empty lines, and what it defines."""

    file: str
    text: str
    names: frozenset[str]
    public: bool
    """Whether a header declares it, so that a program may use it."""

    @property
    def words(self) -> frozenset[str]:
        """The identifiers that its code has."""
        return _words(self.text)


@dataclass(frozen=True)
class Library:
    """The guest library, in definitions."""

    definitions: tuple[Piece, ...]
    headers: Mapping[str, frozenset[str]]
    """The system headers that each file includes."""


def _words(code: str) -> frozenset[str]:
    return frozenset(re.findall(r"\b[A-Za-z_]\w*", _NOT_CODE.sub(" ", code)))


def library_of(files: Mapping[str, str], alone: str) -> Library:
    """Cut the library into definitions.

    :param files: the text of each header and C file of it, by name.
    :param alone: the text of alone.c.
    """
    declared = frozenset(name for file, text in files.items() if file.endswith(".h") for name in _declared(text))
    instead = list(_cut(_PROCESSES, alone, declared))
    replaced = {name for one in instead for name in one.names}
    found = [one for file, text in files.items() for one in _cut(file, text, declared)]
    kept = [one for one in found if not one.names & replaced]
    headers = {file: frozenset(_system_headers(text)) for file, text in files.items()}
    headers[_PROCESSES] |= frozenset(_system_headers(alone))
    return Library((*kept, *instead), headers)


def _system_headers(text: str) -> Iterator[str]:
    return (name for name in _INCLUDE.findall(text) if name.startswith("<"))


def _cut(file: str, text: str, declared: frozenset[str]) -> Iterator[Piece]:
    body = _INCLUDE.sub("", _COMMENT_OF_FILE.sub("", text))
    body = re.sub(r"^#(?:ifndef|define) HUGEPFN_\w*H\n|^#endif\n", "", body, flags=re.MULTILINE)
    blocks = re.split(r"\n\n+(?=[^\s}])", body.strip())
    for block in (part for one in blocks for part in _VARIABLES_ALONE.split(one)):
        code = _NOT_CODE.sub("", block)
        names = frozenset(_defined(code))
        if names:
            public = file.endswith(".h") or bool(names & declared)
            yield Piece(file, _as_static(block.strip()), names, public)


def _defined(code: str) -> Iterator[str]:
    for pattern in (_FUNCTION, _TYPE, _MACRO):
        yield from pattern.findall(code)
    for enumerators in _ENUMERATORS.findall(code):
        yield from re.findall(r"\b([A-Za-z_]\w*)\b(?=\s*[,=]|\s*$)", enumerators)
    if _FUNCTION.search(code) is None:
        for several, behind in _VARIABLE.findall(code):
            yield from re.findall(r"\w+", several or behind)


def _declared(header: str) -> Iterator[str]:
    """Yield the functions and variables that a header declares."""
    code = re.sub(r"__attribute__\(\(.*\)\)", "", _NOT_CODE.sub("", header))
    for one in re.findall(r"^\w[^;{}#]*?\b(\w+)\([^;{}]*\)[^;{}]*;", code, re.MULTILINE):
        yield str(one)


def _as_static(block: str) -> str:
    """A function of the library, as one of a single file."""
    found = _FUNCTION.search(_NOT_CODE.sub(lambda one: " " * len(one[0]), block))
    if found is None or block.startswith("static ", found.start()):
        return block
    return f"{block[: found.start()]}static {block[found.start() :]}"


def flatten(program: str, library: Library, entry: str) -> str:
    """Return a program as one file, without a first comment: headers, what it uses of the library, its own text.

    :param entry: the definition of main(), which calls that of the program by the name ``scenario``. It may use what
        alone.c defines.
    """
    own = _INCLUDE.sub("", _COMMENT_OF_FILE.sub("", program)).strip()
    own = re.sub(r"^int main\(", "static int scenario(", own, flags=re.MULTILINE)
    chosen = list(_needed([(_words(own), ""), (_words(entry), _PROCESSES)], library))
    files = {one.file for one in chosen}
    headers = {*_system_headers(program), *(name for file in files for name in library.headers[file])}
    taken = {name for one in _cut("", own, frozenset()) for name in one.names}
    texts = [_renamed(one, taken, chosen) for one in chosen]
    includes = "".join(f"#include {name}\n" for name in sorted(headers))
    return f"{includes}\n" + "\n\n".join([*texts, own, entry]) + "\n"


def _needed(users: Iterable[tuple[frozenset[str], str]], library: Library) -> Iterator[Piece]:
    """Yield the definitions that are needed, each after those that it needs.

    :param users: words of code, and the file whose own definitions it may use besides the public ones.
    """
    done: set[Piece] = set()

    def visit(used: frozenset[str], file: str) -> Iterator[Piece]:
        for one in library.definitions:
            if one in done or not one.names & used or not (one.public or one.file == file):
                continue
            done.add(one)
            yield from visit(one.words - one.names, one.file)
            yield one

    for words, file in users:
        yield from visit(words, file)


def _renamed(definition: Piece, taken: set[str], chosen: Iterable[Piece]) -> str:
    """A definition whose names, and those of its file, collide with nothing."""
    text, stem = definition.text, definition.file.partition(".")[0]
    for other in chosen:
        if other.file != definition.file or other.public:
            continue
        elsewhere = {name for one in chosen if one.file != other.file for name in one.names}
        for name in other.names & (taken | elsewhere):
            text = re.sub(rf"(?<![.\w>]){name}\b", f"{stem}_{name}", text)
    return text
