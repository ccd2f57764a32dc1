"""One set of units on its way through a Dask cluster, from the caller's side.

One queue has all that happens, in the order in which it happens: kernels that are ready, events of units, workers that
come and go, and units that have ended. One thread gets kernels ready. Everything else is the caller's own thread.
"""

from __future__ import annotations

import json
import queue
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from distributed import Client, Future, KilledWorker
from distributed.comm.core import CommClosedError

from harness.campaign.cluster import remote
from harness.campaign.cluster.identity import Identity, identity_of
from harness.campaign.cluster.kernels import ClusterKernels
from harness.campaign.cluster.remote import SentFolder, SentKernel, SentUnit
from harness.campaign.event_stream import decode
from harness.campaign.kernels import troubled
from harness.campaign.units.unit import Show, Unit, UnitAnswer, UnitStarted
from harness.errors import HugepfnError, MachineryError
from harness.events import Event, Note
from harness.guest.compiler import guest_tests_dir
from harness.host import parcel
from harness.kernel.build import SourceOrigin
from harness.verdict.table import LOST

AGAIN_MAX = 2  # how often a unit runs again, because its worker was lost
FIRST_WORKER_S = 60
NO_WORKER_S = 600.0
RESULT_S = 60


@dataclass(frozen=True)
class _Ready:
    """The kernel of a unit is ready, or it is known that there is none."""

    number: int
    kernel: SentKernel | Future[Any]


@dataclass(frozen=True)
class _Said:
    """A unit says something on a worker; None: it begins."""

    number: int
    worker: str
    line: str | None


@dataclass(frozen=True)
class _Happens:
    """Something happens to a kernel on this machine."""

    number: int
    event: Event


@dataclass(frozen=True)
class _Worker:
    """A worker has come or gone."""

    address: str
    here: bool


@dataclass(frozen=True)
class _Ended:
    """The task of a unit has ended, in any way."""

    number: int
    future: Future[Any]


@dataclass(frozen=True)
class _Broken:
    """The thread that gets kernels ready has failed."""

    error: BaseException


_Message = _Ready | _Said | _Happens | _Worker | _Ended | _Broken


class Dispatch:
    """Units on their way.

    :param here: the sources of which kernels are built on this machine.
    """

    def __init__(self, client: Client, units: Sequence[Unit], show: Show, here: Collection[SourceOrigin] = ()) -> None:
        self._client, self._units, self._show = client, units, show
        self._topic = f"hugepfn-{uuid.uuid4().hex[:12]}"
        self._inbox: queue.SimpleQueue[_Message] = queue.SimpleQueue()
        self._left = set(range(len(units)))
        self._futures: dict[int, Future[Any]] = {}
        self._at: dict[int, str] = {}  # the worker on which a unit runs
        self._lost: dict[int, list[str]] = {}
        self._fit: set[str] = set()
        self._refused: set[str] = set()
        self._caller: Identity | None = None
        self._folders: Mapping[Any, SentFolder] = {}
        self._kernels = ClusterKernels(
            client, self._topic, lambda at, event: self._inbox.put(_Happens(at, event)), here
        )
        self._thread = ThreadPoolExecutor(1, "hugepfn-kernels")
        self._closing = threading.Event()

    def answers(self) -> Iterator[tuple[int, UnitAnswer]]:
        """Yield the answer of each unit.

        :raises MachineryError: no worker can run them, or the scheduler is gone.
        """
        if not self._units:
            return
        self._caller = identity_of(self._units[0].options.config.qemu)
        self._folders = _folders(self._units)
        self._client.subscribe_topic(self._topic, self._on_said)
        self._client.subscribe_topic("all", self._on_worker)
        self._meet_all()
        self._kernels.begin(self._caller.resource, self._fit)
        self._thread.submit(self._get_ready, sorted(self._left), False)
        while self._left:
            if (answer := self._take(self._next())) is not None:
                number, found = answer
                self._left.discard(number)
                self._futures.pop(number, None)
                self._kernels.release(self._units[number].spec, (self._units[one].spec for one in self._left))
                yield number, _with_lost(found, self._lost.get(number, ()))

    def close(self) -> None:
        """Cancel what is queued, and end what runs, here and elsewhere."""
        self._closing.set()
        self._kernels.end()
        self._thread.shutdown(wait=True, cancel_futures=True)
        with suppress(Exception):  # the scheduler may be gone
            self._client.cancel([*self._futures.values(), *self._kernels.futures], force=True)
            for topic in (self._topic, "all"):
                self._client.unsubscribe_topic(topic)

    # --- messages ----------------------------------------------------------------------------------

    def _next(self) -> _Message:
        try:
            return self._inbox.get(timeout=None if self._fit else NO_WORKER_S)
        except queue.Empty:
            raise MachineryError(
                f"no worker has been left for {NO_WORKER_S:.0f} s; start one, and run again with --resume"
            ) from None

    def _take(self, message: _Message) -> tuple[int, UnitAnswer] | None:
        match message:
            case _Ready(number, kernel):
                self._submit(number, kernel)
            case _Said(number, worker, line) if number in self._left:
                if line is None:
                    self._at[number] = worker
                self._show(self._units[number], UnitStarted(worker) if line is None else decode(line))
            case _Happens(number, event):
                self._show(self._units[number], event)
            case _Worker(address, True):
                self._meet([address])
            case _Worker(address, False):
                self._fit.discard(address)
                return self._gone(address)
            case _Ended(number, future) if self._futures.get(number) is future:
                return self._ended(number, future)
            case _Broken(CommClosedError()):
                raise _scheduler_lost()
            case _Broken(error):
                raise error
        return None

    def _on_said(self, event: tuple[float, Any]) -> None:
        self._inbox.put(_Said(**{"line" if key == "event" else key: value for key, value in event[1].items()}))

    def _on_worker(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if isinstance(message, dict) and message.get("action") in ("add-worker", "remove-worker"):
            self._inbox.put(_Worker(str(message["worker"]), message["action"] == "add-worker"))

    # --- units -------------------------------------------------------------------------------------

    def _get_ready(self, numbers: Sequence[int], anew: bool) -> None:
        """Get the kernels of units ready. In the thread for that.

        :param anew: the worker has not got what it was expected to have, or what was sent is lost.
        """
        try:
            for number in numbers:
                if self._closing.is_set():
                    return
                self._inbox.put(_Ready(number, self._kernels.get(number, self._units[number], anew)))
        except BaseException as error:
            self._inbox.put(_Broken(error))

    def _submit(self, number: int, kernel: SentKernel | Future[Any]) -> None:
        unit = self._units[number]
        assert self._caller is not None, "the workers were compared with it"
        needed = {self._caller.resource: 1.0, **({"kvm": 1.0} if unit.options.config.accel == "kvm" else {})}
        used = dict.fromkeys(test.file.parent for test in unit.tests if test.file is not None)
        folders = tuple(self._folders[folder] for folder in used if folder in self._folders)
        future = self._client.submit(
            remote.run_unit,
            SentUnit(unit, number, self._topic, folders),
            kernel,
            key=f"run-{self._topic}-{number}-{uuid.uuid4().hex[:6]}",
            resources=needed,
            priority=-number,
            pure=False,
        )
        self._futures[number] = future
        future.add_done_callback(lambda ended: self._inbox.put(_Ended(number, ended)))

    def _ended(self, number: int, future: Future[Any]) -> tuple[int, UnitAnswer] | None:
        unit = self._units[number]
        if future.status == "finished":
            text = future.result(RESULT_S)
            if text is not None:
                return number, UnitAnswer.from_json(json.loads(text))
            self._thread.submit(self._get_ready, [number], True)
            return None
        if future.status == "error":
            error = future.exception()
            words = str(error) if isinstance(error, HugepfnError) else f"its worker failed: {error!r}"
            if isinstance(error, KilledWorker):
                words = f"its workers were lost, the last one was {error.last_worker.address}"
            return number, UnitAnswer(run=troubled(unit.spec, words))
        if self._client.status != "running":
            raise _scheduler_lost()
        self._thread.submit(self._get_ready, [number], True)  # the only worker that had its kernel is gone
        return None

    def _gone(self, address: str) -> tuple[int, UnitAnswer] | None:
        for number in sorted(self._left):
            if self._at.get(number) != address:
                continue
            del self._at[number]
            unit, lost = self._units[number], self._lost.setdefault(number, [])
            lost.append(address)
            if len(lost) > AGAIN_MAX:
                future = self._futures.pop(number)
                self._client.cancel([future], force=True)
                words = f"it was lost with its worker {len(lost)} times: {', '.join(lost)}"
                self._inbox.put(_Worker(address, False))  # further units of the same worker
                return number, UnitAnswer(run=troubled(unit.spec, words))
            self._show(unit, Note(f"{unit.name}: its worker {address} is lost; it runs again elsewhere"))
        return None

    # --- workers -----------------------------------------------------------------------------------

    def _meet_all(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=FIRST_WORKER_S)
        except TimeoutError:
            where = self._client.scheduler_info(n_workers=0)["address"]
            raise MachineryError(
                f"the scheduler {where} has had no worker for {FIRST_WORKER_S} s; start one with: dask worker {where}"
            ) from None
        self._meet(None)
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        if not self._fit:
            raise MachineryError(f"none of the {len(workers)} workers of the scheduler fits; the lines above say why")
        offered = {name for address in self._fit for name in workers.get(address, {}).get("resources", {})}
        if self._units[0].options.config.accel == "kvm" and "kvm" not in offered:
            raise MachineryError('no worker offers KVM; start those that have it with: dask worker --resources "kvm=1"')

    def _meet(self, addresses: list[str] | None) -> None:
        """Compare workers with this machine, and say once for each how it differs."""
        qemu = self._units[0].options.config.qemu
        caller = self._caller
        assert caller is not None, "it is known before the workers are"
        found = self._client.run(remote.greet, caller, qemu, workers=addresses, on_error="return")
        for address, answer in found.items():
            why = f"no hugepfn like this one ({answer})"
            if isinstance(answer, Identity):
                why = caller.differences(answer)
            if not why:
                self._fit.add(address)
            elif address not in self._refused:
                self._refused.add(address)
                self._show(self._units[0], Note(f"the worker {address} is not used: it has {why}"))


def _folders(units: Sequence[Unit]) -> dict[Any, SentFolder]:
    """Pack the folders of the user's own tests, each once."""
    wanted = {test.file.parent for unit in units for test in unit.tests if test.file is not None}
    files = {folder: parcel.files_below(folder) for folder in wanted - {guest_tests_dir()}}
    return {at: SentFolder(at, parcel.digest(found), parcel.pack(found)) for at, found in files.items()}


def _scheduler_lost() -> MachineryError:
    return MachineryError("the connection to the Dask scheduler is lost; run again with --resume")


def _with_lost(answer: UnitAnswer, lost: Sequence[str]) -> UnitAnswer:
    """Return an answer whose run says which workers were lost with it."""
    if not lost or answer.run is None:
        return answer
    return replace(answer, run=replace(answer.run, context={**answer.run.context, LOST: list(lost)}))
