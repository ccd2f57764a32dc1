"""Make text of a guest, a patch or a build safe to print: characters that control a terminal are shown as codes.

A guest can send any bytes: in a KTAP line, the name of a checkpoint, the kernel log. On a terminal, an escape sequence
moves the cursor, or sets the clipboard or a title; a bidirectional override changes what a line seems to say. So such
text passes through this module once, where bytes become text, and can then be printed as it is (docs/security.md). The
streams of ``exec``, ``ssh`` and ``shell`` belong to a program and are not changed.
"""

from __future__ import annotations

import codecs
import re

#: Control characters except newline and tab (C0, DEL, C1); characters that a terminal or an editor hides, or that
#: change the order of text (Unicode "Bidi_Control", zero-width characters, fillers, line separators, controls of
#: shorthand and music, tags); surrogates, which cannot be encoded.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_PLAIN = bytes((*b"\t\n", *range(0x20, 0x7F)))
#: So many carriage returns before a newline belong to it, each added by a terminal's driver. Without a limit, a stream
#: of them would be held for ever, and searching it would take quadratic time.
_RETURNS_MAX = 8
_LINE_END = re.compile(f"\r{{1,{_RETURNS_MAX}}}\n")


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def printable(text: str | bytes) -> str:
    """Return the text with every character that may control a terminal as its code: ESC becomes ``\\x1b``.

    Newlines and tabs stay, and CR LF (also CR CR LF) becomes a newline. Printable text is returned as it is, so a
    second call does nothing.

    :param text: bytes are decoded as UTF-8; invalid ones become U+FFFD.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return _UNPRINTABLE.sub(_code, _LINE_END.sub("\n", text))


def clipped(text: str, most: int) -> str:
    """Return a text of at most about so many characters: of a longer one, the beginning and the end."""
    if len(text) <= most:
        return text
    half = most // 2
    end = "\n" if "\n" in text else " "
    note = f"... hugepfn: {len(text) - 2 * half} characters are left out here ..."
    return f"{text[:half]}{end}{note}{end}{text[-half:]}"


class PrintableDecoder:
    """:func:`printable` for a stream that arrives in pieces, cut anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # carriage returns at the end, because a newline may follow

    def feed(self, data: bytes) -> str:
        """Return the text of the next piece."""
        plain = data.replace(b"\r\n", b"\n")
        if not self._held and not plain.translate(None, _PLAIN) and self._decoder.getstate() == (b"", 0):
            return plain.decode("ascii")  # ten times as fast, and most text is plain
        text = self._held + self._decoder.decode(data)
        returns = min(len(text) - len(text.rstrip("\r")), _RETURNS_MAX)
        rest = text[: len(text) - returns]
        self._held = text[len(rest) :]
        return printable(rest)
