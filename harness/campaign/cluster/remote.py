"""What runs on a worker of Dask: it compares the machines, builds a kernel, or runs a unit in a child process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import Worker, WorkerPlugin, get_worker

from harness.campaign.cluster.identity import Identity, identity_of
from harness.campaign.event_stream import RunEvent, encode
from harness.campaign.units.child import run_in_child
from harness.campaign.units.unit import Unit, UnitAnswer, unbuilt
from harness.guest.compiler import guest_tests_dir
from harness.host import cache, parcel
from harness.kernel import Kernel, shipped
from harness.selection.selected import Selected
from harness.verdict import Run

_PLUGIN = "hugepfn-ending"
_PLENTY = 1_000_000.0  # of the resource that says which hugepfn this is; Dask counts resources, and this one is a fact
_KILL_AFTER_S = 30.0


@dataclass(frozen=True)
class SentKernel:
    """A kernel on its way to a worker."""

    digest: str = ""
    """Its name in the cache of a worker that has it."""
    packed: bytes | None = None
    """None if the worker is expected to have it."""
    missing: UnitAnswer | None = None
    """Why there is no kernel."""


@dataclass(frozen=True)
class SentFolder:
    """The folder of a user's own tests, with everything beside them."""

    folder: Path
    """Where it is on the caller's machine."""
    digest: str
    packed: bytes


@dataclass(frozen=True)
class SentUnit:
    """A unit as a worker gets it."""

    unit: Unit
    number: int
    topic: str
    """The topic of Dask's events that the caller listens to."""
    folders: tuple[SentFolder, ...] = ()


async def greet(caller: Identity, qemu: str | None, dask_worker: Worker) -> Identity:
    """Compare this machine with the caller's. If they fit, offer the resource that the caller's units ask for."""
    ours = await asyncio.to_thread(identity_of, qemu)
    if ours == caller:
        if _PLUGIN not in dask_worker.plugins:
            await dask_worker.plugin_add(_Ending(), name=_PLUGIN)
        await dask_worker.set_resources(**{ours.resource: _PLENTY})
    return ours


def has(digest: str) -> bool:
    """Whether this worker has a kernel."""
    return shipped.has(digest)


def build(task: SentUnit) -> SentKernel:
    """Build a kernel here, and pack it for the others."""
    with _running(task) as run:
        answer = run(task.unit)
    if answer.unusable or answer.run is not None:
        return SentKernel(missing=answer)
    image = Kernel.parse(task.unit.spec).resolve()
    return SentKernel(shipped.digest_of(image), shipped.pack(image))


def run_unit(task: SentUnit, kernel: SentKernel) -> str | None:
    """Run a unit here.

    :returns: the JSON of its :class:`UnitAnswer`; None if this worker has not got the kernel.
    """
    if kernel.missing is not None:
        why = kernel.missing.unusable
        return json.dumps((unbuilt(task.unit, why) if why else kernel.missing).to_json())
    if not shipped.has(kernel.digest):
        if kernel.packed is None:
            return None
        shipped.keep(kernel.digest, kernel.packed)
    places = {sent.folder: _unpacked(sent) for sent in task.folders}
    unit = task.unit
    # Where a host has room for guests' RAM is the host's own affair.
    ram_dir = Path(os.environ["HUGEPFN_RAM_DIR"]) if os.environ.get("HUGEPFN_RAM_DIR") else None
    here = replace(
        unit,
        spec=f"shipped:{kernel.digest}:{unit.spec}",
        tests=tuple(_moved(test, places) for test in unit.tests),
        options=replace(unit.options, config=replace(unit.options.config, modules=None, ram_dir=ram_dir)),
    )
    with _running(task) as run:
        answer = run(here)
    if answer.run is not None:
        answer = replace(answer, run=_as_at_home(answer.run, unit.spec, {new: old for old, new in places.items()}))
    return json.dumps(answer.to_json())


def _unpacked(sent: SentFolder) -> Path:
    return cache.obtain("shipped", sent.digest, lambda folder: parcel.unpack(sent.packed, folder))


def _moved(test: Selected, places: dict[Path, Path]) -> Selected:
    if test.file is None:
        return test
    folder = places.get(test.file.parent, guest_tests_dir())  # hugepfn's own scenarios are here as well
    return replace(test, file=folder / test.file.name)


def _as_at_home(run: Run, spec: str, places: dict[Path, Path]) -> Run:
    """Return a run with the names that the caller knows: of the kernel, and of test files."""
    results = []
    for result in run.results:
        file = Path(result.file)
        if file.parent in places:
            result = replace(result, file=str(places[file.parent] / file.name))
        if result.evidence:
            result = replace(result, evidence=f"{socket.gethostname()}:{result.evidence}")
        results.append(result)
    kernel = run.context.get("kernel")
    named = {"kernel": {**kernel, "spec": spec}} if isinstance(kernel, dict) else {}
    return Run(tuple(results), {**run.context, **named})


# --- the child process -----------------------------------------------------------------------------


class _Child:
    """The child process of a task, which ends when the task is cancelled, even before it has started."""

    def __init__(self, worker: str) -> None:
        self.worker = worker
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._unwanted = False

    def started(self, child: subprocess.Popen[bytes]) -> None:
        """Note the process."""
        with self._lock:
            self._child = child
            if self._unwanted:
                self._end(child)

    def end(self) -> None:
        """End the process, now or as soon as it starts."""
        with self._lock:
            self._unwanted = True
            if self._child is not None:
                self._end(self._child)

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        for number in (signal.SIGTERM, signal.SIGCONT):
            child.send_signal(number)
        killer = threading.Timer(_KILL_AFTER_S, _kill, [child])
        killer.daemon = True
        killer.start()


def _kill(child: subprocess.Popen[bytes]) -> None:
    if child.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


_CHILDREN: dict[object, _Child] = {}  # by the key of their task


class _Ending(WorkerPlugin):
    """Ends the child of a task that nobody wants any more: it was cancelled, or its caller is gone."""

    def transition(self, key: object, start: str, finish: str, **_more: Any) -> None:
        """Dask calls this when the state of a task changes. One that is released while it runs is not wanted."""
        if (start, finish) == ("executing", "released") and key in _CHILDREN:
            _CHILDREN[key].end()

    def teardown(self, worker: Worker) -> None:
        """Dask calls this when the worker ends."""
        for child in list(_CHILDREN.values()):
            if child.worker == worker.address:
                child.end()


@contextmanager
def _running(task: SentUnit) -> Iterator[Callable[[Unit], UnitAnswer]]:
    """Yield what runs a unit in a child process, whose events go to the caller."""
    worker = get_worker()
    key, child = worker.get_current_task(), _Child(worker.address)

    def say(event: RunEvent | None) -> None:
        line = encode(event) if event is not None else None
        worker.log_event(task.topic, {"number": task.number, "worker": worker.address, "event": line})

    _CHILDREN[key] = child
    try:
        say(None)
        yield lambda unit: run_in_child(unit, say, child.started)
    finally:
        del _CHILDREN[key]
