"""Tests for builds, on a tiny tree that behaves like kbuild: real git, make and compiler, and a kernel of two files."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pexpect
import pytest

from harness.errors import KernelBuildError, MachineryError, UsageError
from harness.events import Sparing
from harness.host import cache
from harness.host.packages import find_command
from harness.kernel import Kernel, KernelImage
from harness.kernel.build import Recipe, TreeOrigin, build, builder, tools
from harness.kernel.offsets import find_offsets

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    bool(tools.missing_tools()),
    reason="needs what kernel builds need; `hugepfn doctor` names it",
)

# kbuild's interface as far as the builder uses it. A half-written a.o reports to fifo READY and waits for WAIT.
MAKEFILE = """\
.DELETE_ON_ERROR:
objects := $(O)/mm/a.o $(O)/mm/b.o $(O)/version.o
tinyconfig:
	@mkdir -p $(O)/mm && echo CONFIG_TINY=y >$(O)/.config
olddefconfig:
	@grep -v -e "CONFIG_DROPPED" -e "CONFIG_TYPO" -e "CONFIG_GONE" $(O)/.config >$(O)/.new; mv $(O)/.new $(O)/.config
	@echo configured >>$(O)/configured
vmlinux: $(objects)
	@echo "  LD      vmlinux"
	@gcc -nostdlib -static -no-pie -Wl,--build-id=none -o $(O)/vmlinux $(objects)
	@echo map >$(O)/System.map
$(O)/%.o: %.c mm/common.h
	@echo "  CC      $*.o"
	@if [ "$*" = mm/a ] && [ -n "$$WAIT" ]; then echo half >$@; exec 3<$$WAIT; echo >$$READY; cat <&3 >/dev/null; fi
	@$(CC) -nostdinc -fno-pie -c -o $@ $<
"""
FILES = {
    "Makefile": MAKEFILE,
    "Kconfig": 'config TINY\n\tbool "t"\nconfig DROPPED\n\tbool "d"\n\tdepends on ABSENT\nconfig ABSENT\n\tbool\n',
    "arch/x86/Makefile": "",
    "mm/common.h": "#define COMMON 1\n",
    "mm/a.c": '#include "common.h"\nint a = 1;\nvoid _start(void) { for (;;); }\n',
    "mm/b.c": '#include "common.h"\nint b = 2;\n',
    "version.c": 'const char banner[] = "Linux version 6.0.0-tiny (";\n',
    ".gitignore": "*.o\n.config\n",
}
PATCH = """\
--- a/mm/a.c
+++ b/mm/a.c
@@ -1,3 +1,3 @@
 #include "common.h"
-int a = 1;
+int a = 17;
 void _start(void) { for (;;); }
"""


@dataclass
class Tree:
    """A user's tree, and the messages shown while it is built."""

    path: Path
    fragment: Path
    said: list[str]

    def write(self, name: str, text: str) -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_text(text)

    def git(self, *words: str) -> str:
        identity = ["-c", "user.name=me", "-c", "user.email=me@here", "-c", "commit.gpgSign=false"]
        argv = ["git", "-C", str(self.path), *identity, *words]
        return subprocess.run(argv, check=True, timeout=60, capture_output=True, text=True).stdout

    def build(self, revision: str | None = None, patches: tuple[Path, ...] = (), **more: object) -> KernelImage:
        recipe = Recipe(TreeOrigin(self.path, revision), patches, (str(self.fragment),), **more)  # type: ignore[arg-type]
        return build(recipe, Sparing(self.said.append))

    def patch(self, text: str = PATCH, name: str = "fix.patch") -> Path:
        path = self.path.parent / name
        path.write_text(text)
        return path

    def listing(self) -> dict[str, tuple[int, int]]:
        """List everything in the tree, git's own folder included, with size and mtime.

        The mtimes of git's objects are left out: git renews them for objects that it would have written again.
        """
        found = {}
        for path in self.path.rglob("*"):
            if not path.is_dir():
                stat = path.lstat()
                found[str(path)] = (stat.st_size, 0 if ".git/objects/" in str(path) else stat.st_mtime_ns)
        return found


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("CCACHE_DISABLE", "1")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # set inside a git hook; must make no difference
    monkeypatch.setenv("MAKEFLAGS", "-n")  # set under make; must make no difference
    found = Tree(tmp_path / "li+n@x", tmp_path / "f.config", [])
    for name, text in FILES.items():
        found.write(name, text)
    found.fragment.write_text("CONFIG_TINY=y  # a reason\n")
    return found


@pytest.fixture
def repository(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """The tree as a git repository with one commit."""
    monkeypatch.delenv("GIT_DIR")
    tree.git("init", "--quiet")
    tree.git("add", "--all")
    tree.git("commit", "--quiet", "-m", "first")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    return tree


def compiled(image: KernelImage) -> list[str]:
    """The files that the build of this kernel compiled."""
    lines = (image.image.parent / "build.log").read_text().splitlines()
    return sorted(line.split()[1] for line in lines if line.startswith("  CC "))


ALL = ["mm/a.o", "mm/b.o", "version.o"]


def test_a_folder_is_built_once_and_never_written_to(tree: Tree) -> None:
    tree.write("mm/stale.o", "of a build in the tree: ignored")
    before = tree.listing()
    image = tree.build()
    assert image.release == "6.0.0-tiny"
    assert image.config is not None
    assert image.config.is_builtin("TINY")
    assert image.modules_dir is None
    assert compiled(image) == ALL
    assert {p.name for p in image.image.parent.iterdir()} >= {
        "vmlinux",
        "config",
        "System.map",
        "build.log",
        "build.json",
    }
    assert tree.listing() == before
    tree.said.clear()
    assert tree.build() == image
    assert tree.said == [], "the kernel was built again"


def test_offsets_or_the_reason_are_stored_beside_the_kernel(tree: Tree) -> None:
    image = tree.build()
    (line,) = [line for line in tree.said if "`walk` will not work" in line]
    assert "kbuild saved no command for kernel/fork.o" in line
    assert f"hugepfn: {line}" in (image.image.parent / "build.log").read_text().splitlines()
    found = find_offsets(image, None)
    assert found is not None
    assert found.problem
    assert found.problem in line
    members = "".join(f"char {name};" for name in ["tasks", "pid", "tgid", "comm", "flags", "signal", "thread_node"])
    headers = {
        "stddef": "#define offsetof(type, member) __builtin_offsetof(type, member)",
        "sched": f"struct task_struct {{ {members} char mm; }};",
        "sched/signal": "struct signal_struct { long live; char thread_head; };",
        "mm_types": "struct mm_struct { char pgd; };",
    }
    for name, text in headers.items():
        tree.write(f"include/linux/{name}.h", text)
    saved = "savedcmd_kernel/fork.o := $(CC) -I$(CURDIR)/include -c -o kernel/fork.o $(CURDIR)/kernel/fork.c"
    recipe = f'\t@mkdir -p $(O)/kernel && echo "{saved}" >$(O)/kernel/.fork.o.cmd\n'
    tree.write("Makefile", MAKEFILE.replace("\t@echo map", f"{recipe}\t@echo map"))
    tree.write("mm/b.c", FILES["mm/b.c"].replace("2", "3"))
    found = find_offsets(tree.build(), None)
    assert found is not None
    assert found.problem == ""
    assert [found.bytes_to[f"task_struct.{name}"] for name in ("tasks", "pid", "mm")] == [0, 1, 7]
    assert found.bytes_to["signal_struct.thread_head"] == 8


def test_a_change_rebuilds_only_dependent_files(tree: Tree) -> None:
    first = tree.build()
    tree.write("mm/b.c", FILES["mm/b.c"].replace("2", "3"))
    second = tree.build()
    assert second.image != first.image
    assert compiled(second) == ["mm/b.o"]
    tree.write("mm/b.c", FILES["mm/b.c"])
    assert tree.build().image == first.image
    tree.write("mm/common.h", "#define COMMON 2\n")
    assert compiled(tree.build()) == ["mm/a.o", "mm/b.o", "version.o"], "b.c was restored as well"


def test_a_git_work_tree_and_a_revision(repository: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    committed = repository.build("HEAD")
    assert compiled(committed) == ALL
    assert repository.build().image == committed.image, "an unchanged work tree is the same kernel as its commit"
    repository.write("mm/b.c", FILES["mm/b.c"].replace("2", "3"))  # tracked
    repository.write("mm/new.h", "#define NEW 3\n")  # untracked
    repository.write("mm/a.c", '#include "new.h"\n' + FILES["mm/a.c"])
    before = repository.listing()
    assert compiled(repository.build()) == ["mm/a.o", "mm/b.o"]
    assert repository.build("HEAD").image == committed.image
    assert repository.listing() == before, "the user's tree or its .git was written to"
    monkeypatch.delenv("GIT_DIR")
    assert repository.git("status", "--porcelain").split() == ["M", "mm/a.c", "M", "mm/b.c", "??", "mm/new.h"]


def test_a_linked_worktree_is_a_separate_tree(repository: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIT_DIR")
    repository.git("worktree", "add", "--quiet", "../linked")
    linked = Tree(repository.path.parent / "linked", repository.fragment, [])
    linked.write("mm/b.c", FILES["mm/b.c"].replace("2", "3"))
    assert linked.build().image != repository.build().image
    assert linked.build("HEAD").image == repository.build().image


def test_only_the_recently_used_kernels_are_kept(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "_KEPT", 2)
    images = []
    for number in (1, 4, 5):
        tree.write("mm/b.c", FILES["mm/b.c"].replace("2", str(number)))
        images.append(tree.build().image)
    assert [image.exists() for image in images] == [False, True, True]


def test_patches_are_applied_and_removed(repository: Tree) -> None:
    plain = repository.build()
    spec = f"tree:{repository.path}@HEAD+{repository.patch()}"
    assert Kernel.parse(spec).spec == spec
    patched = repository.build(patches=(repository.patch(),))
    assert compiled(patched) == ["mm/a.o"]
    assert patched.image.read_bytes() != plain.image.read_bytes()
    text = PATCH.replace("mm/a.c", "mm/b.c").replace("-1,3 +1,3", "-1,2 +1,2").replace("int a = 17", "int b = 3")
    text = text.replace("int a = 1;", "int b = 2;").rpartition(" void")[0]
    other = repository.patch(text, "other.patch")
    both = repository.build(patches=(repository.patch(name="first.patch"), other))
    assert compiled(both) == ["mm/b.o"], "the first patch was applied already"
    assert repository.build().image == plain.image


def test_a_patch_that_does_not_apply_leaves_nothing_behind(repository: Tree) -> None:
    plain = repository.build()
    bad = repository.patch(PATCH.replace("1;", "5;").replace("17", "18"), "bad.patch")
    with pytest.raises(UsageError, match=r"bad\.patch does not apply: mm/a\.c, hunk 1 \(@@ -1,3 \+1,3 @@\)$"):
        repository.build(patches=(repository.patch(), bad))
    with pytest.raises(UsageError, match="it is already applied"):
        repository.build(patches=(repository.patch(), repository.patch(name="again.patch")))
    with pytest.raises(UsageError, match=r"cannot read the patch .*nope\.patch"):
        repository.build(patches=(repository.path / "nope.patch",))
    assert (TreeOrigin(repository.path).slot.source / "mm/a.c").read_text() == FILES["mm/a.c"]
    repository.write("mm/b.c", FILES["mm/b.c"].replace("2", "3"))
    assert compiled(repository.build()) == ["mm/b.o"]
    assert repository.build("HEAD").image == plain.image


def test_a_failed_build_has_file_line_and_message_and_the_next_one_continues(tree: Tree) -> None:
    tree.write("mm/b.c", '#include "common.h"\nint b = nothing;\n')
    with pytest.raises(KernelBuildError) as caught:
        tree.build()
    assert "mm/b.c:2: ‘nothing’ undeclared" in str(caught.value).replace("'", "‘", 1).replace("'", "’", 1)
    assert caught.value.log is not None
    assert "  CC      mm/b.o" in caught.value.log.read_text().splitlines()
    assert cache.entries("built") == []
    tree.write("mm/b.c", FILES["mm/b.c"])
    assert set(compiled(tree.build())) >= {"mm/b.o"}


def test_an_undefined_symbol_and_a_dropped_symbol(tree: Tree) -> None:
    tree.fragment.write_text("# what for\nCONFIG_TINY=y\nCONFIG_TYPO=y\n")
    with pytest.raises(UsageError, match=r"f\.config:3: no Kconfig file of tree:.* has a symbol TYPO; use --lax"):
        tree.build()
    tree.fragment.write_text("CONFIG_TINY=y\nCONFIG_GONE=y  # where there is one: a reason\n")
    tree.build()
    assert any("f.config:2: no Kconfig file of" in line and line.endswith("GONE") for line in tree.said)
    tree.fragment.write_text("CONFIG_TINY=y\n# CONFIG_TYPO is not set\n")
    tree.build()
    assert any("f.config:2: no Kconfig file of" in line and "TYPO, so it is off" in line for line in tree.said)
    tree.fragment.write_text("CONFIG_DROPPED=y\n")
    with pytest.raises(KernelBuildError, match=r"f\.config:1: CONFIG_DROPPED=y: needs ABSENT\nuse --lax"):
        tree.build()
    assert tree.build(lax=True).config is not None
    assert any("needs ABSENT" in line for line in tree.said)
    tree.fragment.write_text("TINY=y\n")
    with pytest.raises(UsageError, match=r"f\.config:1: 'TINY=y' is not a request"):
        tree.build()


def test_it_is_configured_again_only_if_kconfig_changes(tree: Tree) -> None:
    tree.build()
    (objects,) = (TreeOrigin(tree.path).slot.folder / "obj").iterdir()
    tree.write("mm/b.c", FILES["mm/b.c"] + "int c;\n")
    tree.build()
    assert (objects / "configured").read_text() == "configured\n"
    tree.write("mm/Kconfig.debug", "config MORE\n\tbool\n")
    tree.build()
    assert (objects / "configured").read_text() == "configured\n" * 2


def test_another_configuration_has_its_own_objects_but_shares_the_source(tree: Tree) -> None:
    first = tree.build()
    tree.fragment.write_text("CONFIG_TINY=y\nCONFIG_ABSENT=y\n")
    second = tree.build()
    assert second.image != first.image
    assert len(list((TreeOrigin(tree.path).slot.folder / "obj").iterdir())) == 2


WRONG = [
    ("tree:/nowhere", "no such folder"),
    ("tree:{tmp}", "not a kernel source tree: it has no Makefile"),
    ("tree:{tree}@v9", "has no revision v9"),
    ("tree:{tree}@HEAD~1", "has no revision HEAD~1"),
]


@pytest.mark.parametrize(("spec", "words"), WRONG)
def test_an_invalid_source_is_an_error(repository: Tree, tmp_path: Path, spec: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Kernel.parse(spec.format(tmp=tmp_path, tree=repository.path)).resolve()


def test_a_folder_without_git_has_no_revisions(tree: Tree) -> None:
    with pytest.raises(UsageError, match="not a git tree, so it has no revision v6"):
        tree.build("v6")


def test_a_cache_path_that_kbuild_cannot_use_is_an_error(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tree.path.parent / "a space"))
    with pytest.raises(MachineryError, match="its path has a space or a colon"):
        tree.build()


def test_missing_tools_are_reported_first(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MachineryError, match="there is no compiler 'clang-99'"):
        tree.build(cc="clang-99")
    with monkeypatch.context() as patch:
        patch.setattr(tools, "find_command", lambda name: None if name in ("flex", "bc") else f"/usr/bin/{name}")
        with pytest.raises(MachineryError, match=r"this host lacks flex, bc; install with: apt-get install flex bc$"):
            tree.build()
    monkeypatch.setattr(tools, "has_header", lambda _name: False)
    with pytest.raises(MachineryError, match=r"this host lacks gelf\.h; install with: apt-get install libelf-dev$"):
        tree.build()
    assert not (cache.root() / "builds").exists()


def hugepfn(
    tree: Tree, *words: str, wrapper: tuple[str, ...] = (), more: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    argv = [*wrapper, sys.executable, str(ROOT / "vm.py"), "build", str(tree.path), *words]
    env = {**os.environ, **(more or {}), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class Gate:
    """Pauses the compiler of a.o. A build that never reaches a.o fails the test and does not hang."""

    def __init__(self, folder: Path) -> None:
        self.names = {"READY": str(folder / "ready"), "WAIT": str(folder / "wait")}
        for name in self.names.values():
            os.mkfifo(name)
        self.ready, self.wait = (os.open(name, os.O_RDWR) for name in self.names.values())

    def reached(self) -> None:
        assert select.select([self.ready], [], [], 60)[0], "a.o was never compiled"

    def open(self) -> None:
        self.reached()  # a.o has opened its end by now; if it opened it later, it would wait for ours for ever
        os.close(self.wait)


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


@pytest.fixture
def ours(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """The tree for runs of the command in its own process. MAKEFLAGS=-n is removed, because make must really run."""
    monkeypatch.delenv("MAKEFLAGS")
    return tree


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_build_after_an_interrupted_one_is_correct(ours: Tree, gate: Gate, number: signal.Signals) -> None:
    process = hugepfn(ours, more=gate.names)
    gate.reached()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    gate.open()
    assert process.returncode == (130 if number is signal.SIGINT else -number), err
    assert out == ""
    if number is signal.SIGINT:
        assert err.endswith("hugepfn: interrupted\n")
        assert not list(TreeOrigin(ours.path).slot.folder.glob("obj/*/mm/a.o")), "the half-written a.o is still there"
    again = hugepfn(ours)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    image = Kernel.image(out.strip()).resolve()
    assert "mm/a.o" in compiled(image)
    shutil.rmtree(cache.root() / "builds")
    shutil.rmtree(cache.root() / "built")
    fresh = hugepfn(ours)
    out, _ = fresh.communicate(timeout=120)
    assert Kernel.image(out.strip()).resolve().key == image.key, "the kernel differs from that of a fresh build"


def test_a_killed_make_is_not_blamed_on_the_source(ours: Tree, gate: Gate) -> None:
    process = hugepfn(ours, more=gate.names)
    gate.reached()
    make = [int(p.parent.name) for p in Path("/proc").glob("[0-9]*/stat") if is_make_of(p, process.pid)]
    os.kill(make[0], signal.SIGTERM)
    gate.open()  # make has ended its shell, but not the process that the shell waits for
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "make was killed while" in err.splitlines()[-1]


def is_make_of(stat: Path, parent: int) -> bool:
    try:
        name, _, rest = stat.read_text().rpartition(")")
    except OSError:  # it may have ended already
        return False
    return name.endswith("(make") and int(rest.split()[1]) == parent


def test_a_half_updated_source_is_repaired(tree: Tree) -> None:
    first = tree.build()
    slot = TreeOrigin(tree.path).slot
    # As git leaves it when it is killed in the middle of a checkout.
    (slot.folder / "half-updated").touch()
    (slot.folder / "index.lock").touch()
    (slot.source / "mm/b.c").write_text("int half")
    (slot.source / "mm/unknown.h").write_text("of another tree\n")
    tree.write("mm/a.c", FILES["mm/a.c"].replace("1", "4"))
    assert compiled(tree.build()) == ["mm/a.o", "mm/b.o"]
    assert not (slot.source / "mm/unknown.h").exists()
    assert not (slot.folder / "half-updated").exists()
    tree.write("mm/a.c", FILES["mm/a.c"])
    shutil.rmtree(cache.root() / "built")
    assert tree.build().key == first.key


def test_two_builds_of_the_same_kernel_build_it_once(ours: Tree, gate: Gate) -> None:
    first = hugepfn(ours, more=gate.names)
    gate.reached()
    second = hugepfn(ours, more=gate.names)
    assert second.stderr is not None
    line = ""
    while "waiting" not in line:
        line = second.stderr.readline()
        assert line, "the second build ended instead of waiting"
    gate.open()
    outs = [process.communicate(timeout=60) for process in (first, second)]
    assert outs[0][0] == outs[1][0] != ""
    assert "built 3 files of" in outs[0][1]
    assert "built 3 files of" not in outs[1][1], "both processes built"


def test_the_command_prints_the_vmlinux_and_how_to_run_it(ours: Tree) -> None:
    process = hugepfn(ours, "--patch", str(ours.patch()))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert Path(out.strip()).name == "vmlinux"
    assert err.splitlines()[-1].endswith(f"run it with: hugepfn run --kernel {out.strip()}")


def test_a_progress_bar_counts_the_files_on_a_terminal(ours: Tree, gate: Gate) -> None:
    argv = [str(ROOT / "vm.py"), "build", str(ours.path)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **gate.names, "TERM": "xterm", "COLUMNS": "100"}
    with pexpect.spawn(sys.executable, argv, env=env, timeout=60, dimensions=(24, 100)) as child:
        child.expect(r"[1-3]/\?")  # a.o waits, and other files may be done; the number of files is not known yet
        gate.open()
        child.expect(r"built 3 files of \S+ in \d+ CPU seconds")
        child.expect(r"built/\w+/vmlinux")
        child.expect(pexpect.EOF)


UNSHARE = ("unshare", "--user", "--map-root-user", "--mount")


def can_mount(folder: Path) -> bool:
    argv = [*UNSHARE, "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    return (
        shutil.which("unshare") is not None and subprocess.run(argv, check=False, capture_output=True).returncode == 0
    )


def test_a_full_disk_is_one_line(ours: Tree, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if not can_mount(small):
        pytest.skip("needs a user namespace of its own to mount a small file system")
    ours.write("mm/b.c", '#include "common.h"\nchar b[3 << 20] = { 1 };\n')
    script = f'mount -t tmpfs -o size=2m tmpfs {small} && exec "$@"'
    process = hugepfn(ours, wrapper=(*UNSHARE, "sh", "-c", script, "sh"), more={"HUGEPFN_CACHE_DIR": str(small)})
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert err.splitlines()[-1].startswith("hugepfn: no space left"), err
    assert str(small) in err.splitlines()[-1]


@pytest.mark.skipif(find_command("ccache") is None, reason="ccache is not installed")
def test_ccache_knows_the_headers_from_the_compilers_own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file is taken from the cache, and one whose header has changed is compiled, without preprocessing."""
    monkeypatch.delenv("CCACHE_DISABLE", raising=False)
    monkeypatch.setenv("CCACHE_DIR", str(tmp_path / "ccache"))
    (tmp_path / "one.c").write_text('#include "value.h"\nint value(void) { return VALUE; }\n')

    def made(value: str) -> bytes:
        header = tmp_path / "value.h"
        header.write_text(f"#define VALUE {value}\n")
        os.utime(header, (1e9, 1e9))  # ccache does not trust a header that is younger than its own start
        words = [*tools.make_compiler("gcc").split(), "-Wp,-MMD,.one.d", "-c", "one.c", "-o", "one.o"]
        subprocess.run(words, cwd=tmp_path, env=tools.make_environment(), check=True)
        return (tmp_path / "one.o").read_bytes()

    def counted() -> dict[str, int]:
        said = subprocess.run(["ccache", "--print-stats"], capture_output=True, text=True, check=True).stdout
        return {name: int(count) for name, count in (line.split() for line in said.splitlines())}

    first, other, again = made("1"), made("2"), made("1")
    assert first == again
    assert first != other
    told = counted()
    assert (told["direct_cache_hit"], told["cache_miss"], told["preprocessed_cache_miss"]) == (1, 2, 0)


def test_ccache_is_used_unless_disabled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CCACHE_DISABLE", raising=False)
    monkeypatch.setattr(tools, "find_command", lambda command: f"/usr/bin/{command}")
    assert tools.make_compiler("gcc-12") == "ccache gcc-12"
    assert tools.make_compiler("ccache gcc") == "ccache gcc"
    monkeypatch.setenv("CCACHE_DISABLE", "1")
    assert tools.make_compiler("gcc-12") == "gcc-12", (
        "ccache is not called at all: switched off, it still takes a tenth of a kernel's build time"
    )
    monkeypatch.delenv("CCACHE_DISABLE")
    monkeypatch.setattr(tools, "find_command", lambda _command: None)
    assert tools.make_compiler("gcc-12") == "gcc-12"


LLVM = ("clang", "ld.lld", "llvm-ar", "llvm-nm", "llvm-objcopy")


def llvm(folder: Path) -> None:
    """LLVM's tools as scripts; clang is gcc with another version."""
    folder.mkdir()
    for name in LLVM:
        words = 'exec gcc "$@"' if name == "clang" else "exit 0"
        (folder / name).write_text(f'#!/bin/sh\n[ "$1" != --version ] || {{ echo {name} 19.1.7; exit 0; }}\n{words}\n')
        (folder / name).chmod(0o755)


def test_make_gets_llvm_and_clang(tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write(
        "Makefile", MAKEFILE.replace("vmlinux: $(objects)\n", "vmlinux: $(objects)\n\t@echo uses '$(LLVM)' $(CC)\n")
    )
    plain = tree.build()
    assert "uses  gcc\n" in (plain.image.parent / "build.log").read_text()
    llvm(tmp_path / "llvm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'llvm'}{os.pathsep}{os.environ['PATH']}")
    image = tree.build(llvm=True)
    assert "uses 1 clang\n" in (image.image.parent / "build.log").read_text()
    assert compiled(image) == ALL, "LLVM has an O= folder of its own"
    assert image.image != plain.image, "the compiler is part of the key"
    assert image.image not in (plain.image, tree.build(cc="clang").image), (
        "clang without LLVM's tools makes another kernel again"
    )
    assert "uses 1 clang" in (tree.build(cc="clang", llvm=True).image.parent / "build.log").read_text()


def test_missing_llvm_tools_are_named_in_one_line(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_command", lambda name: None if name in LLVM else find_command(name))
    with pytest.raises(MachineryError) as caught:
        tree.build(llvm=True)
    expected = (
        f"cannot build kernels, because this host lacks {', '.join(LLVM)}; install with: apt-get install clang lld llvm"
    )
    assert str(caught.value) == expected


def test_the_command_builds_with_llvm(tree: Tree, tmp_path: Path) -> None:
    llvm(tmp_path / "llvm")
    path = f"{tmp_path / 'llvm'}{os.pathsep}{os.environ['PATH']}"
    process = hugepfn(tree, "--llvm", "--lax", more={"PATH": path})
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert Path(out.strip()).is_file()
