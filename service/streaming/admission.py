"""How many archives or uploads run at a time, and whether more may begin. Health and metrics do not pass here."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import AtCapacity, Draining

# How long a refused caller should wait. Archives take seconds to minutes; replicas behind a proxy are tried at once.
RETRY_SECONDS = 10


class Admission:
    """Counts what is being served; ``what`` says it in a refusal.

    Refuses at once rather than queue: a caller behind a proxy has an alternative.

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
        """Hold one place while the context is open.

        Raises:
            AtCapacity: all places are taken.
            Draining: the service is about to stop.
        """
        if self.draining:
            raise Draining(
                "The service is about to stop; another replica may answer.", retry_after_seconds=RETRY_SECONDS
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
        """Admit nothing more."""
        self.draining = True

    async def wait_until_idle(self) -> None:
        """Return when no archive is being served."""
        await self._idle.wait()
