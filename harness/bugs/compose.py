"""Composes a reproducer, one C file of plain system calls, from a comment, a body, and what the body uses. Pure.

A reproducer has three parts. Its first comment says what is expected and what a broken kernel does. Then follow the
headers and the parts of parts.c that it needs, which :func:`compose` writes. What is after :data:`BEGIN` is its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from harness.errors import UsageError

BEGIN = "/* --- the bug --- */\n\n"
#: Which header declares what a program uses.
_HEADERS: Mapping[str, str] = {
    "errno.h": r"errno|E[A-Z]{3,}",
    "fcntl.h": r"open|O_RDONLY|O_RDWR|O_WRONLY",
    "linux/kvm.h": r"KVM_\w+|kvm_\w+",
    "linux/pci_regs.h": r"PCI_COMMAND",
    "linux/userfaultfd.h": r"UFFD\w+|uffdio_\w+",
    "linux/vfio.h": r"vfio_\w+|VFIO_\w+",
    "pthread.h": r"pthread_\w+",
    "sched.h": r"sched_yield",
    "setjmp.h": r"sigjmp_buf|sigsetjmp|siglongjmp",
    "signal.h": r"signal|sigaction|siginfo_t|SIG[A-Z]+",
    "stdio.h": r"printf|snprintf|fopen|setbuf",
    "stdlib.h": r"exit|malloc|free|strtol|getenv",
    "string.h": r"str(?:error\w*|len|n?cmp|rchr|str)|sigabbrev_np|mem(?:cpy|set)",
    "sys/ioctl.h": r"ioctl",
    "sys/klog.h": r"klogctl",
    "sys/mman.h": r"mmap|munmap|mremap|mprotect|madvise|mincore|PROT_\w+",
    "sys/resource.h": r"getrusage",
    "sys/syscall.h": r"syscall",
    "sys/uio.h": r"process_vm_readv|iovec",
    "sys/wait.h": r"waitpid|WIFSIGNALED",
    "time.h": r"clock_gettime",
    "unistd.h": r"access|fork|vfork|getpid|pread|pwrite|read|write|close|alarm|_exit|readlink|pipe",
}
_NOT_CODE = re.compile(r'/\*.*?\*/|//[^\n]*|"(?:[^"\\\n]|\\.)*"', re.DOTALL)
_DEFINED = re.compile(r"^(?:#define|struct) (\w+)|^static [^;={(]*?\b(\w+)(?=\(|[;,\[]| =)", re.MULTILINE)


def parts(text: str) -> Mapping[str, str]:
    """Return the parts of parts.c by the name that each defines first, in the order of the file.

    :raises UsageError: there is text that defines nothing.
    """
    found = {}
    blocks = re.split(r"\n\n(?=/\*|#define|static|struct)", text.strip())
    for block in blocks[1:]:  # the first is the comment of the file
        if (defined := _DEFINED.search(block)) is None:
            raise UsageError(f"a part of a reproducer defines nothing: {block.splitlines()[0]}")
        found[str(defined[1] or defined[2])] = block.strip()
    return found


def compose(source: str, available: Mapping[str, str]) -> str:
    """Return a reproducer with the headers and parts that it needs, in place of those that it has.

    :param source: a C file that begins with a comment, and has :data:`BEGIN`.
    :param available: see :func:`parts`.
    :raises UsageError: the source has another form.
    """
    comment, _, rest = source.partition("*/\n")
    _, begin, body = rest.partition(BEGIN)
    if not comment.startswith(("/*", "// SPDX")) or not begin:
        raise UsageError(f"a reproducer begins with a comment, and has the line {BEGIN.strip()!r}")
    used = [available[name] for name in _needed(body, available)]
    whole = "\n".join([*used, body])
    code = _NOT_CODE.sub("", whole)
    headers = "".join(f"#include <{name}>\n" for name, words in _HEADERS.items() if re.search(rf"\b({words})\b", code))
    together = re.sub(r"(#define [^\n]*)\n\n(?=#define)", r"\1\n", "\n\n".join(used))
    return f"{comment}*/\n#define _GNU_SOURCE\n{headers}\n{together}\n\n{BEGIN}{body}"


def _needed(body: str, available: Mapping[str, str]) -> Sequence[str]:
    """Return the names of the parts that a body needs, and those that these need, in the order of the file."""
    needed: set[str] = set()
    texts = [body]
    while texts:
        text = texts.pop()
        for name in _used(text, available):
            if name not in needed:
                needed.add(name)
                texts.append(available[name])
    return [name for name in available if name in needed]


def _used(text: str, available: Mapping[str, str]) -> Iterator[str]:
    text = _NOT_CODE.sub("", text)
    for name, part in available.items():
        names = {name, *re.findall(r"^static \w+ (\w+)[;,]", part, re.MULTILINE), *_also(part)}
        if any(re.search(rf"\b{one}\b", text) for one in names):
            yield name


def _also(part: str) -> Iterator[str]:
    """Yield the further names of a line that declares several variables: `static int container, device;`."""
    for line in re.findall(r"^static \w+ (\w+(?:, \w+)+);", part, re.MULTILINE):
        yield from line.split(", ")
