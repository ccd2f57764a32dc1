"""Patch files and mailboxes: bytes in, patches out; also finds where one does not apply. Pure."""

from __future__ import annotations

import email
import email.message
import email.policy
import re
from dataclasses import dataclass, field

from harness.errors import UsageError
from harness.printable import printable

_POSTMARK = re.compile(rb"^From \S+ .*\d{4}\r?\n(?=[A-Za-z-]+:)", re.MULTILINE)  # mbox(5)
_DIFF = re.compile(rb"^(diff --git |--- .+\n\+\+\+ )", re.MULTILINE)
_FAILED = re.compile(r"^error: patch failed: (.+):(\d+)$", re.MULTILINE)
_OTHER = re.compile(r"^(?:error|fatal): (.+)$", re.MULTILINE)
_HUNK = re.compile(r"^@@ -(\d+)(?:,\d+)? \+\d+(?:,\d+)? @@.*$")


@dataclass(frozen=True)
class Patch:
    """One patch of a file or a series."""

    name: str  # for messages: the file, and the subject if the file has several patches
    diff: bytes = field(repr=False)
    subject: str = ""  # of its mail; "" if it is not a mail


def split(name: str, data: bytes) -> list[Patch]:
    """The patches of a file, in order: one for a diff or a mail, several for a mailbox. A cover letter does not count.

    :param name: name of the file, for messages.
    :raises UsageError: there is no patch in it.
    """
    marks = [match.start() for match in _POSTMARK.finditer(data)]
    if marks:
        mails = [data[start:end] for start, end in zip(marks, [*marks[1:], len(data)], strict=True)]
        mails = [mail.partition(b"\n")[2] for mail in mails]
    else:
        mails = [data]
    found = []
    for mail in mails:
        message = email.message_from_bytes(mail, policy=email.policy.compat32)
        diff = _body(message) if message.keys() else mail
        if _DIFF.search(diff):
            subject = printable(" ".join(str(message.get("Subject", "")).split()))
            found.append((subject, diff))
    if not found:
        raise UsageError(f"{name} contains no patch; expected a diff, a mail or a mailbox")
    return [
        Patch(f"{name} ({subject})" if subject and len(found) > 1 else name, diff, subject) for subject, diff in found
    ]


def _body(message: email.message.Message) -> bytes:
    """The text of a mail, decoded (quoted-printable, base64); including attachments with a diff."""
    parts = [part for part in message.walk() if not part.is_multipart()]
    texts = [part.get_payload(decode=True) for part in parts]
    return b"\n".join(text.replace(b"\r\n", b"\n") for text in texts if isinstance(text, bytes))


def why_not(stderr: str, patch: Patch) -> str:
    """The message of ``git apply`` about a patch that does not apply, with file and hunk."""
    if match := _FAILED.search(stderr):
        file, line = match[1], int(match[2])
        number, header = _hunk_at(patch.diff.decode(errors="replace"), file, line)
        return f"{file}, hunk {number} ({header})" if number else f"{file}, line {line}"
    match = _OTHER.search(stderr)
    return match[1].replace("does not exist in index", "does not exist in this source") if match else "no reason given"


def _hunk_at(diff: str, file: str, line: int) -> tuple[int, str]:
    """Number and header of the hunk of ``file`` that starts at ``line`` of the old file; (0, "") if not found."""
    here, number = False, 0
    for text in diff.splitlines():
        if text.startswith(("--- ", "+++ ")):
            path = text[4:].split("\t")[0].strip()
            if path != "/dev/null":
                here = path == file or path.partition("/")[2] == file
            if text.startswith("--- "):
                number = 0
        elif match := _HUNK.match(text):
            number += 1
            if here and int(match[1]) == line:
                return number, text
    return 0, ""
