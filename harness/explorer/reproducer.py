"""Writes a sequence of operations as one C file of plain system calls, for people who do not have hugepfn. Pure.

The processes take turns: each does its own steps, in the order of the sequence. The exit status of the program says
what user space can tell of a finding, as in all reproducers (docs/reference/reproducers.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.bugs.compose import BEGIN, compose
from harness.explorer.groups import detail_of, symptom_of
from harness.model.operation import ACCESSES, OTHER_THREAD, STORES, VFORK, Backing, Operation, Verb
from harness.verdict.invariants import Deviation, Oracle
from harness.verdict.log.troubles import KernelComplaint
from harness.verdict.symptoms import Ended, Shown

_RIGHTS = {"": "PROT_NONE", "r": "PROT_READ", "w": "PROT_WRITE", "rw": "RW"}
_FLAGS = {
    Backing.BAR: "MAP_SHARED | MAP_FIXED, device, bar_offset + {to:#x}",
    Backing.SHM: "MAP_SHARED | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0",
    Backing.ANON: "MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0",
}
#: Advice that older headers do not name.
_ADVICE = {"collapse": "25 /* MADV_COLLAPSE */", "guard": "102 /* MADV_GUARD_INSTALL */"}
_IOVA = 8 << 30
_TOUCH = {"": "touch", OTHER_THREAD: "touch_on_other_thread", VFORK: "touch_by_vfork"}
_DEVICE = {
    **{"on": "set_memory(1);", "off": "set_memory(0);", "reset": "answer(ioctl(device, VFIO_DEVICE_RESET));"},
    **{"sleep": "set_power(3 /* LOW_POWER_ENTRY */);", "wake": "set_power(5 /* LOW_POWER_EXIT */);"},
}


def reproducer(operations: Sequence[Operation], shown: Shown, kernel: str, available: Mapping[str, str]) -> str:
    """Return a C file that does these operations, and says whether the finding shows.

    :param kernel: the release of the kernel on which it was seen.
    :param available: the parts of reproducers, see :func:`harness.bugs.compose.parts`.
    """
    comment = _comment(operations, shown, kernel)
    steps = "\n".join(_step(number, op) for number, op in enumerate(operations, start=1))
    owners = ", ".join(str(op.process) for op in operations)
    probe = _probe(operations) if _asks_for_faults(shown) else None
    text = f"""\
/* The process that does each step. */
static const int owner[] = {{ -1, {owners} }};

static void run(int me, int first);

static void do_step(int step)
{{
\tswitch (step) {{
{steps}
\t}}
}}

/* Each process does its own steps when it is their turn, and stays until the end. */
static void run(int me, int first)
{{
\tfor (int step = first; step <= {len(operations)}; step++) {{
\t\twhile (turn->step < step)
\t\t\tsched_yield();
\t\tif (owner[step] != me || turn->step > step)
\t\t\tcontinue;
\t\tdo_step(step);
\t\tif (turn->step == step)
\t\t\tturn->step = step + 1;
\t}}
{_at_the_end(operations, probe)}\
\twhile (me && turn->step <= {len(operations) + 1})
\t\tsched_yield();
}}

int main(int argc, char **argv)
{{
\topen_device(argc > 1 ? argv[1] : getenv("VFIO_BDF"));
\tshare_turns();
{_verdict(shown, probe, len(operations))}\
}}
"""
    return compose(f"{comment}{BEGIN}{text}", available)


def _comment(operations: Sequence[Operation], shown: Shown, kernel: str) -> str:
    lines = [f" * {number:2}  {op}" for number, op in enumerate(operations, start=1)]
    detail = detail_of(shown).replace("*/", "* /")
    return "\n".join(
        [
            "// SPDX-License-Identifier: GPL-2.0-only",
            "/*",
            f" * {symptom_of(shown)}",
            " *",
            f" * Seen on {kernel}, after these operations:",
            *lines,
            f" * {detail}"[:118].rstrip(),
            " *",
            " * Build: gcc -static -pthread. Run it as root. It takes the PCI address of a device that is bound to",
            " * vfio-pci, with a BAR of at least 2G.",
            " * Exit status: 0 the kernel is fine, 1 it is broken, 2 user space cannot tell.",
            " */",
            "",
        ]
    )


def _step(number: int, op: Operation) -> str:
    body = "\n".join(f"\t\t{line}" for line in _code(number, op))
    return f"\tcase {number}: /* {op} */\n{body}\n\t\tbreak;"


def _code(number: int, op: Operation) -> Iterator[str]:
    at, size, to = f"ARENA + {op.at:#x}ul", f"{op.size:#x}ul", f"{op.to:#x}ul"
    match op.verb:
        case Verb.MAP:
            where = _FLAGS[op.memory].format(to=op.to)
            yield f"answer(mmap({at}, {size}, {_RIGHTS[op.how]}, {where}) == MAP_FAILED);"
        case Verb.READ | Verb.WRITE:
            yield f"{_TOUCH[op.how]}({at}, {int(op.verb in STORES)}, {number});"
        case Verb.FILL | Verb.SEND:
            yield f"through_a_pipe({at}, {int(op.verb in STORES)}, {number});"
        case Verb.PEEK:
            yield f"peek_by({int(op.how == 'vmsplice')}, {at});" if op.how else f"peek({at});"
        case Verb.SCAN:
            yield f"scan({at}, {size});"
        case Verb.MINCORE:
            yield f"ask_mincore({at}, {size});"
        case Verb.UFFD:
            mode = "UFFDIO_REGISTER_MODE_MISSING" if op.how == "missing" else "UFFDIO_REGISTER_MODE_WP"
            features = "1 << 15 /* UFFD_FEATURE_WP_ASYNC */" if op.how == "async" else "0"
            yield f"watch({at}, {size}, {mode}, {features});"
        case Verb.FORK:
            yield "if (!fork()) {"
            yield f"\trun({op.to}, {number + 1});"
            yield "\t_exit(0);"
            yield "}"
        case Verb.EXIT:
            yield f"turn->step = {number + 1};"
            yield "_exit(0);"
        case Verb.PROTECT:
            yield f"answer(mprotect({at}, {size}, {_RIGHTS[op.how]}));"
        case Verb.UNMAP:
            yield f"answer(munmap({at}, {size}));"
        case Verb.MOVE:
            flags = "MREMAP_MAYMOVE | MREMAP_FIXED"
            yield f"answer(mremap({at}, {size}, {size}, {flags}, ARENA + {to}) == MAP_FAILED);"
        case Verb.SHRINK | Verb.GROW:
            flags = "0" if op.verb is Verb.SHRINK else "MREMAP_MAYMOVE"
            yield f"answer(mremap({at}, {size}, {to}, {flags}) == MAP_FAILED);"
        case Verb.ADVISE:
            yield f"answer(madvise({at}, {size}, {_ADVICE.get(op.how, f'MADV_{op.how.upper()}')}));"
        case Verb.LOCK:
            yield f"answer({'mlock' if op.how == 'on' else 'munlock'}({at}, {size}));"
        case Verb.CLEAR:
            yield f'write_file("/proc/self/clear_refs", "{op.how}");'
        case Verb.LOOK:
            yield f'read_all("/proc/self/{op.how}");' if op.how != "pagemap" else "peek(ARENA); /* for pagemap */"
        case Verb.MEMORY:
            yield _DEVICE[op.how]
        case Verb.DMA:
            yield f"map_for_dma({at}, {size}, {_IOVA + (number << 30):#x}ul);"
        case Verb.RACE:
            yield f"race({number + 1}, {number + 2}, {op.size});"
            yield f"turn->step = {number + 3};"


def _asks_for_faults(shown: Shown) -> bool:
    """Whether a leaf is missing that was there, which the next access shows by a fault."""
    return isinstance(shown, Deviation) and (shown.oracle, shown.got) in (
        (Oracle.UNTOUCHED, "gone"),
        (Oracle.DIRT, "no entry"),
    )


def _probe(operations: Sequence[Operation]) -> tuple[int, int] | None:
    """Return process and address of the last access, which needs no fault where its leaf is still there."""
    for index in reversed(range(len(operations) - 1)):
        op = operations[index]
        if op.verb in ACCESSES:
            at = op.at
            for later in operations[index + 1 :]:
                if later.verb is Verb.MOVE and later.process == op.process and later.at <= at < later.end:
                    at += later.to - later.at
            return op.process, at
    return None


def _at_the_end(operations: Sequence[Operation], probe: tuple[int, int] | None) -> str:
    if probe is None:
        return ""
    process, at = probe
    last = len(operations) + 1
    return f"""\
\twhile (turn->step < {last})
\t\tsched_yield();
\tif (me == {process}) {{
\t\tturn->refaults = faults_of_read(ARENA + {at:#x}ul);
\t\tturn->step = {last + 1};
\t}}
"""


def _verdict(shown: Shown, probe: tuple[int, int] | None, steps: int) -> str:
    """Return the end of main(): the run, and what it says about the kernel."""
    run = "\trun(0, 1);\n"
    done = f"\tturn->step = {steps + 2};\n"
    match shown:
        case Deviation() if probe is not None:
            wait = f"\twhile (turn->step <= {steps + 1})\n\t\tsched_yield();\n"
            said = '\tprintf("page faults of the next read: %ld\\n", turn->refaults);\n'
            return f'{run}{wait}{said}\tsay(turn->refaults > 0, "{symptom_of(shown)}");\n'
        case Deviation(oracle=Oracle.DATA, expected=expected):
            return f'{run}{done}\tsay(turn->word != {expected}ul, "{symptom_of(shown)}");\n'
        case Deviation(oracle=Oracle.ACCESS | Oracle.ERRNO | Oracle.PROGRESS, expected=expected):
            fine = ["0"] if shown.oracle is Oracle.PROGRESS else expected.split(" or ")
            wrong = " && ".join(f'strcmp((char *)turn->said, "{one}")' for one in fine)
            said = '\tprintf("the last operation answered %s\\n", (char *)turn->said);\n'
            return f'{run}{done}{said}\tsay({wrong}, "{symptom_of(shown)}");\n'
        case KernelComplaint(line=line, title=title):
            words = title if title and title in line else line.partition(":")[0]
            before = f'\tint before = logged("{words}");\n\n'
            return f'{before}{run}{done}\tsay(logged("{words}") > before, "the kernel log: {words}");\n'
        case Ended():
            return f'{run}{done}\tsay(0, "the kernel lives");\n'
    return f'{run}{done}\terrno = ENOTSUP;\n\tcannot_tell("user space cannot see the bits of an entry");\n'
