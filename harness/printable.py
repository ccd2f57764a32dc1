"""Text of a guest, a patch or a build, made safe to print: whatever a terminal would obey is shown as its code.

A guest can send any bytes: in a KTAP line, a checkpoint's name, the kernel's log. On a terminal an escape sequence
moves the cursor, sets the clipboard or a title, and a bidirectional override changes what a line seems to say. So such
text passes through here once, where bytes become text, and everything that shows it later may print it as it is
(docs/security.md). The streams of ``exec``, ``ssh`` and ``shell`` are a program's own and stay as they are.
"""

from __future__ import annotations

import codecs
import re

#: Control characters but newline and tab (C0, DEL, C1); what a terminal or an editor hides, or orders text by (Unicode
#: "Bidi_Control", zero-width characters, line separators, tags); surrogates, which no stream can encode.
_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_PLAIN = bytes((*b"\t\n", *range(0x20, 0x7F)))
_LINE_END = re.compile("\r+\n")


def _code(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def printable(text: str | bytes) -> str:
    """The text with every character that a terminal might obey as its code: ESC becomes ``\\x1b``.

    Newlines and tabs stay, and CR LF is a newline. Text that is printable already is returned as it is, so that it may
    pass through here twice.

    :param text: bytes are taken as UTF-8; what is not becomes U+FFFD.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return _UNPRINTABLE.sub(_code, _LINE_END.sub("\n", text))


class PrintableDecoder:
    """:func:`printable` for a stream that arrives in pieces, cut anywhere."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # carriage returns at the end: a newline may follow

    def feed(self, data: bytes) -> str:
        """The text of the next piece."""
        if not self._held and not data.translate(None, _PLAIN) and self._decoder.getstate() == (b"", 0):
            return data.decode("ascii")  # ten times as fast, and most text is plain
        text = self._held + self._decoder.decode(data)
        rest = text.rstrip("\r")
        self._held = text[len(rest) :]
        return printable(rest)
