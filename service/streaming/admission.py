"""Admission control: a limit on concurrent archives or uploads. Health checks and metrics do not pass it."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import AtCapacity, Draining

# Value of Retry-After. Archives take seconds to minutes; a proxy tries other replicas at once.
RETRY_SECONDS = 10


class Admission:
    """Counts what is being served, and rejects what exceeds ``limit``; ``what`` names it in the problem's detail.

    Rejects at once instead of queueing: a client behind a proxy has an alternative.

    States: open, then draining for good. ``active`` never exceeds ``limit``.
    """

    def __init__(self, limit: int, what: str = "archives are being served") -> None:
        self.limit = limit
        self._what = what
        self.active = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one slot while the context is open.

        Raises:
            AtCapacity: all slots are in use.
            Draining: the service is about to stop.
        """
        if self.draining:
            raise Draining(
                "The service is about to stop; another replica may accept the request.",
                retry_after_seconds=RETRY_SECONDS,
            )
        if self.active >= self.limit:
            raise AtCapacity(f"{self.limit} {self._what} already.", retry_after_seconds=RETRY_SECONDS)
        self.active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.active -= 1
            if not self.active:
                self._idle.set()

    def drain(self) -> None:
        """Stop admitting."""
        self.draining = True

    async def wait_until_idle(self) -> None:
        """Wait until nothing is being served."""
        await self._idle.wait()
