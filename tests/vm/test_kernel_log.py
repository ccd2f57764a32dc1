"""Checks that the kernel's log is read even if the console is silent, and that a gap is reported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import ClaimFailed, DeadlineError, MachineryError
from harness.kernel import Kernel, KernelImage
from harness.machine.vm import VM

from .conftest import Command

STALL = "rcu: INFO: rcu_sched self-detected stall on CPU"
#: C code of a guest program that silences the console.
SILENCERS = {
    "printk": 'say("/proc/sys/kernel/printk", "1");',
    "syslog": "if (klogctl(6, NULL, 0)) return 1;",  # SYSLOG_ACTION_CONSOLE_OFF
}
SAY = """
#include <fcntl.h>
#include <string.h>
#include <sys/klog.h>
static void say(const char *path, const char *words)
{
	int fd = open(path, O_WRONLY);

	if (fd < 0 || write(fd, words, strlen(words)) != (ssize_t)strlen(words))
		hp_die("%s", path);
	close(fd);
}
"""


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return Kernel.debian("6.12").resolve()


@pytest.fixture
def speaker(program: Callable[[str, str], Path]) -> Callable[[str, str], Path]:
    """Like ``program``, with a C function that writes text into a file."""

    def write(name: str, body: str) -> Path:
        path = program(name, body)
        text = path.read_text().replace("int main(", SAY + "int main(", 1)
        path.write_text(text)
        return path

    return write


def stalled(before: str = "") -> str:
    return f'\tktap_plan(1);\n\t{before}\n\tsay("/dev/kmsg", "<4>{STALL}\\n");\n\tktap_ok(true, "said so");'


@pytest.mark.parametrize("how", SILENCERS)
def test_a_program_that_silences_the_console(image: KernelImage, speaker: Callable[[str, str], Path], how: str) -> None:
    source = speaker("stall", stalled(SILENCERS[how]))
    with VM(image) as vm:
        with pytest.raises(ClaimFailed, match="self-detected stall"), vm.run(source):
            pass
        assert STALL not in vm.qemu.log.console
        assert vm.kernel_log.count(STALL) == 1
        with vm.run("fork", "--level=pte"):  # and the next program must not be blamed for it
            pass


@pytest.mark.parametrize("word", ["quiet", "loglevel=3", "printk.time=0"])
def test_a_kernel_with_a_quiet_console(image: KernelImage, speaker: Callable[[str, str], Path], word: str) -> None:
    source = speaker("stall", stalled())
    with VM(image, append=[word]) as vm:
        with pytest.raises(ClaimFailed, match="self-detected stall"), vm.run(source):
            pass
        assert (STALL in vm.qemu.log.console) is (word == "printk.time=0")
        assert vm.kernel_log.count(STALL) == 1


def test_a_program_that_hangs_beside_a_silent_console(image: KernelImage, speaker: Callable[[str, str], Path]) -> None:
    source = speaker("hang", stalled() + "\n\tpause();")
    with (
        VM(image, append=["quiet"]) as vm,
        pytest.raises(DeadlineError, match=r"the kernel log says: .*rcu: INFO"),
        vm.run(source, timeout_s=5) as guest,
    ):
        guest.until("never")


def test_a_flood_makes_a_gap_and_no_clean_log(image: KernelImage, speaker: Callable[[str, str], Path]) -> None:
    flood = """\tstatic char line[900] = "<7>";
\tktap_plan(1);
\tmemset(line + 3, 'x', sizeof(line) - 5);
\tline[sizeof(line) - 2] = '\\n';
\tfor (int i = 0; i < 20000; i++)
\t\tsay("/dev/kmsg", line);
\tktap_ok(true, "said much");"""
    source = speaker("flood", flood)
    with VM(image, append=["quiet"]) as vm:
        with pytest.raises(MachineryError, match=r"a gap of \d+ records"), vm.run(source, timeout_s=120):
            pass
        with vm.run("fork", "--level=pte"):
            pass


def test_a_kernel_that_refuses_writes_to_dev_kmsg(hugepfn: Command) -> None:
    done = hugepfn("run", "fork", "--level", "pte", "--kernel", "debian:6.12", "--append", "printk.devkmsg=off")
    assert done.returncode == 3, done.stdout
    assert "boot without printk.devkmsg=off" in done.stdout + done.stderr
