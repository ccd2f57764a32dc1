"""Gets the kernels of units ready for any worker. A kernel is built where its source is, and sent by its content.

A source that every machine can fetch (``debsrc:6.12``) is built on a worker, on one with the resource "build" if there
is one. Everything else is on the caller's machine: it is fetched or built there. So is such a source if a kernel with
patches is made of it, because each machine that builds has to build nearly all of it once. Dask moves what was packed.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from distributed import Client, Future

from harness.campaign.cluster import remote
from harness.campaign.cluster.remote import SentKernel, SentUnit
from harness.campaign.event_stream import RunEvent
from harness.campaign.kernels import end_child, takes_modules, troubled
from harness.campaign.units.child import run_in_child
from harness.campaign.units.unit import Unit, UnitAnswer, Work
from harness.errors import HugepfnError
from harness.events import Event
from harness.kernel import Kernel, KernelImage, shipped
from harness.kernel.build import BuiltSource, SourceOrigin


def origins_here(units: Iterable[Unit]) -> set[SourceOrigin]:
    """Return the sources of which some unit needs a kernel that only this machine can build."""
    found = set()
    for spec in {unit.spec for unit in units}:
        with suppress(HugepfnError):  # whoever gets the kernel says what is wrong
            source = Kernel.parse(spec).source
            if isinstance(source, BuiltSource) and not source.anywhere:
                found.add(source.recipe.origin)
    return found


class ClusterKernels:
    """The kernels of some units. Its methods but :meth:`end` run in one thread.

    :param happens: called with the number of a unit and an event of its kernel.
    :param here: the sources of which kernels are built on this machine.
    """

    def __init__(
        self, client: Client, topic: str, happens: Callable[[int, Event], None], here: Collection[SourceOrigin]
    ) -> None:
        self._client, self._topic, self._happens, self._here = client, topic, happens, here
        self._resource = ""
        self._fit: Collection[str] = ()
        self._ready: dict[str, SentKernel | Future[Any]] = {}
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._ended = False

    def begin(self, resource: str, workers: Collection[str]) -> None:
        """Note the resource that every worker that fits offers, and these workers."""
        self._resource, self._fit = resource, workers

    def get(self, number: int, unit: Unit, anew: bool) -> SentKernel | Future[Any]:
        """Return the kernel of a unit, as an argument for :func:`harness.campaign.cluster.remote.run_unit`.

        :param anew: what this returned before did not reach the worker.
        """
        known = self._ready.get(unit.spec)
        on_its_way = isinstance(known, Future) and known.status in ("pending", "finished")
        if known is None or (anew and not on_its_way):
            known = self._ready[unit.spec] = self._obtained(number, unit, anew)
        return known

    def release(self, spec: str, wanted: Iterable[str]) -> None:
        """Let Dask forget a kernel that no unit wants any more."""
        if spec not in wanted:
            self._ready.pop(spec, None)

    @property
    def futures(self) -> list[Future[Any]]:
        """What Dask keeps or builds."""
        return [one for one in list(self._ready.values()) if isinstance(one, Future)]

    def end(self) -> None:
        """End what is built here. From any thread."""
        with self._lock:
            self._ended = True
            if self._child is not None and self._child.returncode is None:
                end_child(self._child)

    def _obtained(self, number: int, unit: Unit, send: bool) -> SentKernel | Future[Any]:
        try:
            source = Kernel.parse(unit.spec).source
            if isinstance(source, BuiltSource):
                if source.anywhere and source.recipe.origin not in self._here:
                    return self._built_elsewhere(number, unit)
                built = self._built_here(number, unit)
                if built.unusable or built.run is not None:
                    return SentKernel(missing=built)
            modules = unit.options.config.modules if takes_modules(unit.spec) else None
            image = Kernel.parse(unit.spec, modules).resolve(lambda event: self._happens(number, event))
            return self._sent(image, send)
        except HugepfnError as error:
            return SentKernel(missing=UnitAnswer(run=troubled(unit.spec, str(error))))

    def _sent(self, image: KernelImage, send: bool) -> SentKernel | Future[Any]:
        digest = shipped.digest_of(image)
        there = self._client.run(remote.has, digest, workers=list(self._fit), on_error="ignore")
        if not send and there and all(there.values()):
            return SentKernel(digest)
        scattered: Future[Any] = self._client.scatter(
            SentKernel(digest, shipped.pack(image)), workers=list(self._fit), hash=False
        )
        return scattered

    def _built_elsewhere(self, number: int, unit: Unit) -> Future[Any]:
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        offered = any("build" in workers[one].get("resources", {}) for one in self._fit if one in workers)
        return self._client.submit(
            remote.build,
            SentUnit(replace(unit, work=Work.BUILD), number, self._topic),
            key=f"build-{self._topic}-{number}",
            resources={self._resource: 1.0, **({"build": 1.0} if offered else {})},
            priority=1,
            pure=False,
        )

    def _built_here(self, number: int, unit: Unit) -> UnitAnswer:
        def say(event: RunEvent) -> None:
            if isinstance(event, Event):
                self._happens(number, event)

        return run_in_child(replace(unit, work=Work.BUILD), say, self._started)

    def _started(self, child: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._child = child
            if self._ended:
                raise KeyboardInterrupt  # the campaign ended meanwhile; whoever follows the child ends it
