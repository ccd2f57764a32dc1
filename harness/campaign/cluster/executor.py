"""Runs units on the workers of a Dask cluster. What Dask has is Dask's: queues, retries, resources, moving data."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from distributed import Client

from harness.campaign.cluster.dispatch import Dispatch
from harness.campaign.cluster.kernels import origins_here
from harness.campaign.units.unit import Answers, Show, Unit
from harness.errors import MachineryError, UsageError
from harness.kernel.build import SourceOrigin

CONNECT_S = 15


class ClusterExecutor:
    """Runs units on the workers of a scheduler.

    :param show: called with everything that happens, in the thread that runs :meth:`run`.
    """

    def __init__(self, client: Client, show: Show) -> None:
        self._client, self._show = client, show
        self._here: set[SourceOrigin] = set()  # a bisection, which runs unit after unit, has both kinds as well

    def run(self, units: Sequence[Unit]) -> Answers:
        """Run units anywhere. Yield the answers in the order in which they come.

        :raises MachineryError: no worker can run them, or the scheduler is gone.
        """
        self._here |= origins_here(units)
        dispatch = Dispatch(self._client, units, self._show, self._here)
        try:
            yield from dispatch.answers()
        finally:
            dispatch.close()


@contextmanager
def connected(address: str, show: Show) -> Iterator[ClusterExecutor]:
    """Connect to a scheduler for as long as the block runs.

    :param address: "tcp://HOST:8786", or "tls://HOST:8786" with the certificates of Dask's configuration.
    :raises UsageError: this is no address.
    :raises MachineryError: nothing answers there.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters is said in one line of our own
    try:
        client = Client(address, timeout=CONNECT_S, set_as_default=False, name="hugepfn")
    except (OSError, TimeoutError) as error:
        raise MachineryError(
            f"no Dask scheduler answers at {address} ({error}); start one with: dask scheduler"
        ) from error
    except (ValueError, TypeError) as error:
        raise UsageError(f"--scheduler {address!r}: {error}; expected an address like tcp://HOST:8786") from error
    with client:
        yield ClusterExecutor(client, show)
