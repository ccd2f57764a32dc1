"""Names of functions as their source has them: Rust's v0 mangling, and the plain names of C++.

The grammar is that of Rust's RFC 2603. What is not understood stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_BASIC_TYPES = {
    **{"a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize", "j": "usize"},
    **{"l": "i32", "m": "u32", "n": "i128", "o": "u128", "p": "_", "s": "i16", "t": "u16", "u": "()", "v": "..."},
    **{"x": "i64", "y": "u64", "z": "!"},
}
_POINTERS = {"R": "&", "Q": "&mut ", "P": "*const ", "O": "*mut "}
_MAX_STEPS = 200
"""A name that takes more is left as it is: back references can make a short name endless."""
_MAX_DEPTH = 50
"""A name that is nested deeper is left as it is, however deep the caller's own stack is."""
_CXX = re.compile(r"_Z(\d{1,3})([A-Za-z_]\w*)")


class _NotUnderstood(Exception):
    """The name has another form."""


def demangled(name: str) -> str:
    """The name as its source has it, without parameters and hashes.

    :param name: a symbol's name without the compiler's suffixes.
    """
    if name.startswith("_R"):
        try:
            return _NameReader(name[2:]).path(value=True)
        except (_NotUnderstood, IndexError):
            return name
    if name.startswith("_Z") and (match := _CXX.match(name)) and len(match[2]) >= int(match[1]):
        return match[2][: int(match[1])]
    return name


class _NameReader:
    """Reads the part of a name behind ``_R``."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._steps = 0
        self._depth = 0

    def path(self, *, value: bool = False) -> str:
        """A path, as ``crate::module::function``.

        :param value: names a function or a constant, so that generic arguments follow "::".
        """
        self._enter()
        found = self._path(value=value)
        self._depth -= 1
        return found

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _NotUnderstood

    def _path(self, *, value: bool) -> str:
        match self._next():
            case "C":
                return self._identifier()
            case "M":
                self._impl_path()
                return f"<{self._type()}>"
            case "X":
                self._impl_path()
                return f"<{self._type()} as {self.path()}>"
            case "Y":
                return f"<{self._type()} as {self.path()}>"
            case "N":
                return self._nested(self._next(), value=value)
            case "I":
                path = self.path(value=value)
                arguments = ", ".join(self._until_end(self._generic))
                return f"{path}{'::' if value else ''}<{arguments}>"
            case "B":
                return self._back(lambda reader: reader.path(value=value))
        raise _NotUnderstood

    def _nested(self, namespace: str, *, value: bool) -> str:
        parent, name = self.path(value=value), self._identifier()
        if namespace.isupper():
            return f"{parent}::{{{'closure' if namespace == 'C' else 'shim'}}}"
        return f"{parent}::{name}" if name else parent

    def _type(self) -> str:
        self._enter()
        found = self._any_type()
        self._depth -= 1
        return found

    def _any_type(self) -> str:
        letter = self._peek()
        if letter in _BASIC_TYPES:
            self._next()
            return _BASIC_TYPES[letter]
        if letter in _POINTERS:
            self._next()
            if letter in "RQ" and self._peek() == "L":
                self._next()
                self._base62()
            return _POINTERS[letter] + self._type()
        match letter:
            case "S":
                self._next()
                return f"[{self._type()}]"
            case "A":
                self._next()
                return f"[{self._type()}; {self._const()}]"
            case "T":
                self._next()
                return f"({', '.join(self._until_end(lambda reader: reader._type()))})"
            case "B":
                self._next()
                return self._back(lambda reader: reader._type())
        return self.path()

    @staticmethod
    def _generic(reader: _NameReader) -> str:
        match reader._peek():
            case "L":
                reader._next()
                reader._base62()
                return "'_"
            case "K":
                reader._next()
                return reader._const()
        return reader._type()

    def _const(self) -> str:
        kind = self._next()
        if kind == "B":
            return self._back(lambda reader: reader._const())
        if kind == "p":
            return "_"
        end = self._text.index("_", self._at) if "_" in self._text[self._at :] else -1
        digits = self._text[self._at : end]
        if end < 0 or kind not in _BASIC_TYPES or not re.fullmatch(r"n?[0-9a-f]{0,32}", digits):
            raise _NotUnderstood
        self._at = end + 1
        return digits.replace("n", "-") if digits else "0"

    def _until_end(self, read: Callable[[_NameReader], str]) -> list[str]:
        found = []
        while self._peek() != "E":
            found.append(read(self))
        self._next()
        return found

    def _impl_path(self) -> None:
        self._disambiguator()
        self.path()

    def _identifier(self) -> str:
        self._disambiguator()
        if self._peek() == "u":  # punycode
            raise _NotUnderstood
        match = re.compile(r"0|[1-9]\d{0,2}").match(self._text, self._at)
        if match is None:
            raise _NotUnderstood
        start = match.end() + (self._text[match.end() : match.end() + 1] == "_")
        end = start + int(match[0])
        if end > len(self._text):
            raise _NotUnderstood
        self._at = end
        return self._text[start:end]

    def _disambiguator(self) -> None:
        if self._peek() == "s":
            self._next()
            self._base62()

    def _base62(self) -> int:
        match = re.compile(r"([0-9a-zA-Z]{0,12})_").match(self._text, self._at)
        if match is None:
            raise _NotUnderstood
        self._at = match.end()
        if not match[1]:
            return 0
        number = 0
        for letter in match[1]:
            digit = int(letter, 36) + (26 if letter.isupper() else 0)
            number = number * 62 + digit
        return number + 1

    def _back(self, read: Callable[[_NameReader], str]) -> str:
        here = self._at - 1
        target = self._base62()
        if target >= here:
            raise _NotUnderstood
        self._enter()
        after, self._at = self._at, target
        result = read(self)
        self._at = after
        self._depth -= 1
        return result

    def _peek(self) -> str:
        if self._at >= len(self._text):
            raise _NotUnderstood
        return self._text[self._at]

    def _next(self) -> str:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise _NotUnderstood
        letter = self._peek()
        self._at += 1
        return letter
