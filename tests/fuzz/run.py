"""``make fuzz``: run a coverage-guided fuzzer on every reader of a guest's bytes.

    python tests/fuzz/run.py [--minutes 10] [--target NAME]...
    python tests/fuzz/run.py --reproduce build/fuzz/NAME-SHA

The fuzzer is atheris, which is libFuzzer for Python. The time is divided among the targets (tests/fuzz/targets.py),
each of which is a process of its own. The fuzzer begins with the golden files, and with what earlier runs have left in
build/fuzz/corpus. An exception that a reader does not document, a failed assertion of its target, an input that takes
a minute and one that takes 2 GB are findings: the input is written to build/fuzz/NAME-SHA, one for each place that
raises, and the exit status is 1. Whoever mends a reader moves the input to tests/fuzz/findings, where ``make check``
reads it from then on.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import re
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "fuzz"
LONGEST_INPUT_BYTES = 8192
"""A few kilobytes hold every construct, and let the fuzzer try hundreds of inputs in a second."""
INPUT_TIMEOUT_S = 60
"""Wall time, on a host that is busy; an input of the greatest length takes a tenth of a second."""
MEMORY_MAX_MIB = 2048


def keep(name: str, data: bytes) -> Path:
    """Write an input that is a finding, and return where it is."""
    path = BUILD / f"{name}-{hashlib.sha1(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"finding: {path.relative_to(ROOT)}, {len(data)} bytes; this shows it again:", flush=True)
    print(f"  PYTHONPATH=. {Path(sys.executable)} tests/fuzz/run.py --reproduce {path.relative_to(ROOT)}", flush=True)
    return path


def place(error: BaseException) -> tuple[str, int]:
    """The place that raised: two inputs that lead to the same one are one finding."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return frame.filename, frame.lineno or 0


def fuzz(name: str, arguments: Sequence[str]) -> None:
    """Run libFuzzer with these arguments; it ends the process.

    :param name: of a target.
    """
    import atheris

    with atheris.instrument_imports(include=["harness"]):
        from tests.fuzz.targets import TARGETS
    read, known = TARGETS[name].read, set[tuple[str, int]]()

    def one(data: bytes) -> None:
        try:
            read(data)
        except Exception as error:  # every exception is a finding
            if place(error) not in known:
                known.add(place(error))
                traceback.print_exc()
                keep(name, data)

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


def quoted(word: bytes) -> str:
    """A word of a target as a line of libFuzzer's dictionary."""
    return '"' + "".join(chr(c) if c >= 32 and c < 127 and c not in b'"\\' else f"\\x{c:02x}" for c in word) + '"\n'


def campaign(name: str, seconds: int) -> bool:
    """Fuzz one target in a process of its own, and print a line about it.

    :returns: whether anything was found.
    """
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus, seeds, words = BUILD / "corpus" / name, BUILD / "seeds" / name, BUILD / f"{name}.dict"
    for folder in (corpus, seeds):
        folder.mkdir(parents=True, exist_ok=True)
    for seed in target.seeds():
        (seeds / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    words.write_text("".join(map(quoted, target.words)))
    limits = [f"-max_len={LONGEST_INPUT_BYTES}", f"-timeout={INPUT_TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MAX_MIB}"]
    how = [f"-max_total_time={seconds}", f"-artifact_prefix={BUILD}/{name}-", "-print_final_stats=1"]
    how += [f"-dict={words}"] if target.words else []
    argv = [sys.executable, __file__, "--target", name, "--fuzz", *limits, *how, str(corpus), str(seeds)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, cwd=ROOT)
    log = done.stdout.decode(errors="replace")
    (BUILD / f"{name}.log").write_text(log)
    count = log.count("\nfinding: ") + log.startswith("finding: ")
    print("".join(f"{line}\n" for line in log.split("\n") if line.startswith(("finding: ", "  PYTHONPATH="))), end="")
    for left in BUILD.glob(f"{name}-*-*"):  # libFuzzer's names: NAME-timeout-SHA, NAME-oom-SHA, NAME-crash-SHA
        count += not left.name.startswith(f"{name}-slow-unit-")
        if not left.name.startswith(f"{name}-slow-unit-"):
            keep(name, left.read_bytes())
        left.unlink()
    executed = re.search(r"number_of_executed_units: (\d+)", log)
    covered = re.findall(r"cov: (\d+)", log)
    print(
        f"{name}: {int(executed[1]) if executed else 0} executions in {seconds} s, "
        f"{covered[-1] if covered else 0} edges, {count} findings",
        flush=True,
    )
    if done.returncode and not count:
        print(f"{name}: the fuzzer ended with {done.returncode}; see build/fuzz/{name}.log", flush=True)
    return bool(count or done.returncode)


def main(arguments: Sequence[str]) -> int:
    """Return the exit status: 0 if nothing was found, 1 for findings, 3 if there is no fuzzer."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of what a guest sends.")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all targets together (%(default)s)")
    parser.add_argument("--target", action="append", metavar="NAME", help="only this one; may be given several times")
    parser.add_argument("--reproduce", type=Path, metavar="FILE", help="read this input once: NAME-SHA")
    parser.add_argument("--fuzz", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.fuzz is not None:
        fuzz(given.target[0], given.fuzz)
    from tests.fuzz.targets import TARGETS

    if given.reproduce:
        TARGETS[given.reproduce.name.partition("-")[0]].read(given.reproduce.read_bytes())
        print("it is read without a finding")
        return 0
    names = given.target or [*TARGETS]
    if unknown := sorted(set(names) - {*TARGETS}):
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        print(
            "fuzz: atheris is not installed: `make fuzz` installs it, where it has a wheel for this Python "
            f"({sys.version_info.major}.{sys.version_info.minor}); `make check` gives the same targets to hypothesis"
        )
        return 3
    BUILD.mkdir(parents=True, exist_ok=True)
    found = [campaign(name, max(round(given.minutes * 60 / len(names)), 1)) for name in names]
    return int(any(found))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
    sys.exit(130)
